// FloatProducts of bfloat16 matrices by tile registers, sums in float; included in the namespace of a level, whose
// class of tiles is a parameter. A packed right factor has its inputs in pairs, as AMX wants them: cell [pair][column].
// Of a left one, steps of 32 inputs lie one after the other, and in each the tile's 32 rows.

constexpr int kStripRows = kTileHeight, kStripInputs = kTileBytes / 2, kStripColumns = kTileBytes / 4;
constexpr int kBlockStrips = 2;  // of rows, and of columns: four sums of a tile of 32 by 32
constexpr int kBlockRows = kBlockStrips * kStripRows, kBlockColumns = kBlockStrips * kStripColumns;
constexpr int kStepPairs = kStripInputs / 2;

// Registers: sums by strip of rows and of columns, then strips of the left and of the right factor.
constexpr int kBlockSum = 0, kLeftStrip = 4, kRightStrip = 6;

constexpr TileConfig whole_tiles() {
    TileConfig config;
    for (int tile = 0; tile < 8; tile++) config.shape(tile, kTileHeight, kTileBytes);
    return config;
}

template <int Rows, int Columns, class Registers>
LANES void add_step(Registers& tiles, const float* left, const float* right) {
    constexpr std::int64_t stride = kBlockColumns * sizeof(float);
    tiles.load(kRightStrip, right, stride);
    if (Columns > 1) tiles.load(kRightStrip + 1, right + kStripColumns, stride);
    tiles.load(kLeftStrip, left, kTileBytes);
    if (Rows > 1) tiles.load(kLeftStrip + 1, left + kStripRows * kStepPairs, kTileBytes);
    tiles.dot_bf16(kBlockSum, kLeftStrip, kRightStrip);
    if (Columns > 1) tiles.dot_bf16(kBlockSum + 1, kLeftStrip, kRightStrip + 1);
    if (Rows > 1) tiles.dot_bf16(kBlockSum + 2, kLeftStrip + 1, kRightStrip);
    if (Rows > 1 && Columns > 1) tiles.dot_bf16(kBlockSum + 3, kLeftStrip + 1, kRightStrip + 1);
}

using BlockSums = float[kBlockStrips][kStripRows][kBlockColumns];

// The sums of as many strips as a tile has.
template <int Rows, int Columns, class Registers>
LANES void sum_block(Registers& tiles, const ProductTile& tile, BlockSums& sums) {
    for (int i = 0; i < 4; i++)
        if (i / 2 < Rows && i % 2 < Columns) tiles.zero(kBlockSum + i);
    const float *left = tile.left.data, *right = tile.right;
    for (int begin = 0; begin < tile.k; begin += kStripInputs) {
        add_step<Rows, Columns>(tiles, left, right);
        left += kBlockRows * kStepPairs, right += kBlockColumns * kStepPairs;
    }
    tiles.store(kBlockSum, sums[0][0], sizeof sums[0][0]);
    if (Columns > 1) tiles.store(kBlockSum + 1, sums[0][0] + kStripColumns, sizeof sums[0][0]);
    if (Rows > 1) tiles.store(kBlockSum + 2, sums[1][0], sizeof sums[0][0]);
    if (Rows > 1 && Columns > 1) tiles.store(kBlockSum + 3, sums[1][0] + kStripColumns, sizeof sums[0][0]);
}

template <class Registers>
void multiply_blocks(const ProductTile* blocks, int count) {
    static constexpr TileConfig config = whole_tiles();
    Registers tiles(config);
    alignas(64) BlockSums sums;
    for (int t = 0; t < count; t++) {
        const ProductTile& tile = blocks[t];
        const bool tall = tile.num_rows > kStripRows, wide = tile.num_columns > kStripColumns;
        if (tall && wide)
            sum_block<2, 2>(tiles, tile, sums);
        else if (tall)
            sum_block<2, 1>(tiles, tile, sums);
        else if (wide)
            sum_block<1, 2>(tiles, tile, sums);
        else
            sum_block<1, 1>(tiles, tile, sums);
        for (int r = 0; r < tile.num_rows; r++) {
            const float* sum = sums[0][r];
            float* out = tile.out.row(r);
            if (tile.adds)
                for (int c = 0; c < tile.num_columns; c++) out[c] += sum[c];
            else
                for (int c = 0; c < tile.num_columns; c++) out[c] = sum[c];
        }
    }
}

// The cells of two rows' numbers, column by column; a row that is null has zeros.
LANES void pair_rows(const float* even, const float* odd, int count, std::uint32_t* cells) {
    if (odd)
        for (int c = 0; c < count; c++) cells[c] = bf16_pair(even[c], odd[c]);
    else
        for (int c = 0; c < count; c++) cells[c] = even ? bf16_pair(even[c], 0.0f) : 0;
}

// The cells of one row's numbers, pair by pair, up to `pairs` of them.
LANES void pair_inputs(const float* row, int k, int pairs, std::uint32_t* cells) {
    const int whole = k / 2;
    for (int p = 0; p < whole; p++) cells[p] = bf16_pair(row[2 * p], row[2 * p + 1]);
    for (int p = whole; p < pairs; p++) cells[p] = 2 * p < k ? bf16_pair(row[2 * p], 0.0f) : 0;
}

using Square = std::uint32_t[kStepPairs][kStepPairs];
static_assert(kStepPairs == kStripColumns && kStepPairs == kStripRows);

// to[c][r] = from[r][c], in squares of four by four.
LANES void transpose(const Square& from, std::uint32_t* to, std::ptrdiff_t stride) {
    typedef std::uint32_t Four __attribute__((vector_size(16), aligned(4), may_alias));
    for (int r = 0; r < kStepPairs; r += 4)
        for (int c = 0; c < kStepPairs; c += 4) {
            Four row[4];
            for (int i = 0; i < 4; i++) row[i] = *(const Four*)&from[r + i][c];
            const Four low01 = __builtin_shufflevector(row[0], row[1], 0, 4, 1, 5);
            const Four low23 = __builtin_shufflevector(row[2], row[3], 0, 4, 1, 5);
            const Four high01 = __builtin_shufflevector(row[0], row[1], 2, 6, 3, 7);
            const Four high23 = __builtin_shufflevector(row[2], row[3], 2, 6, 3, 7);
            *(Four*)(to + (c + 0) * stride + r) = __builtin_shufflevector(low01, low23, 0, 1, 4, 5);
            *(Four*)(to + (c + 1) * stride + r) = __builtin_shufflevector(low01, low23, 2, 3, 6, 7);
            *(Four*)(to + (c + 2) * stride + r) = __builtin_shufflevector(high01, high23, 0, 1, 4, 5);
            *(Four*)(to + (c + 3) * stride + r) = __builtin_shufflevector(high01, high23, 2, 3, 6, 7);
        }
}

void pack_block_columns(View rows, int k, int column, int count, float* panel) {
    auto* cells = (std::uint32_t*)panel;
    const int pairs = (k + kStripInputs - 1) / kStripInputs * kStepPairs;
    for (int p = 0; p < pairs; p++, cells += kBlockColumns) {
        const float* even = 2 * p < k ? rows.row(2 * p) + column : nullptr;
        const float* odd = 2 * p + 1 < k ? rows.row(2 * p + 1) + column : nullptr;
        pair_rows(even, odd, count, cells);
        for (int c = count; c < kBlockColumns; c++) cells[c] = 0;
    }
}

void pack_block_rows(View rows, int count, int k, float* panel) {
    auto* cells = (std::uint32_t*)panel;
    for (int begin = 0; begin < k; begin += kStripInputs, cells += kStepPairs * kBlockColumns)
        for (int strip = 0; strip < kBlockStrips; strip++) {
            Square square;
            for (int c = 0; c < kStripColumns; c++) {
                const int row = strip * kStripColumns + c;
                const float* from = row < count ? rows.row(row) + begin : nullptr;
                pair_inputs(from, from ? (k - begin < kStripInputs ? k - begin : kStripInputs) : 0, kStepPairs,
                            square[c]);
            }
            transpose(square, cells + strip * kStripColumns, kBlockColumns);
        }
}

void pack_left_block_columns(View rows, int k, int column, int count, float* tile) {
    auto* cells = (std::uint32_t*)tile;
    for (int begin = 0; begin < k; begin += kStripInputs, cells += kBlockRows * kStepPairs)
        for (int first = 0; first < count; first += kStripRows) {
            Square square;
            const int width = count - first < kStripRows ? count - first : kStripRows;
            for (int p = 0; p < kStepPairs; p++) {
                const int i = begin + 2 * p;
                const float* even = i < k ? rows.row(i) + column + first : nullptr;
                const float* odd = i + 1 < k ? rows.row(i + 1) + column + first : nullptr;
                pair_rows(even, odd, width, square[p]);
                for (int c = width; c < kStripRows; c++) square[p][c] = 0;
            }
            transpose(square, cells + first * kStepPairs, kStepPairs);
        }
}

void pack_left_block_rows(View rows, int count, int begin, int k, float* tile) {
    auto* cells = (std::uint32_t*)tile;
    for (int step = 0; step < k; step += kStripInputs, cells += kBlockRows * kStepPairs) {
        const int inputs = k - step < kStripInputs ? k - step : kStripInputs;
        for (int r = 0; r < count; r++)
            pair_inputs(rows.row(r) + begin + step, inputs, kStepPairs, cells + r * kStepPairs);
        for (int r = count; r % kStripRows; r++) pair_inputs(nullptr, 0, kStepPairs, cells + r * kStepPairs);
    }
}

template <class Registers>
constexpr FloatProducts tile_products{kBlockRows,
                                      kBlockColumns,
                                      kStripRows,
                                      kStripInputs,
                                      2,
                                      multiply_blocks<Registers>,
                                      pack_block_columns,
                                      pack_block_rows,
                                      pack_left_block_columns,
                                      pack_left_block_rows,
                                      0};
