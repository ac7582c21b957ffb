// FloatProducts of bfloat16 matrices with tile registers and float accumulators; included in the namespace of a level.
// The class of tile registers is a template parameter. A packed right factor is [pair of inputs][column], the layout
// that AMX requires; a cell is one pair. A packed left factor is [step of 32 inputs][row of the tile][pair].

constexpr int kStripRows = kTileHeight, kStripInputs = kTileBytes / 2, kStripColumns = kTileBytes / 4;
constexpr int kBlockStrips = 2;  // strips of rows and strips of columns in a block: 32 x 32, four accumulators
constexpr int kBlockRows = kBlockStrips * kStripRows, kBlockColumns = kBlockStrips * kStripColumns;
constexpr int kStepPairs = kStripInputs / 2;

// Register numbers: accumulators [strip of rows][strip of columns], then strips of the left and of the right factor.
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

// Computes the products of Rows x Columns strips and writes them to `sums`, or adds them if tile.adds.
template <int Rows, int Columns, class Registers>
LANES void sum_block(Registers& tiles, const ProductTile& tile, MutableView sums) {
    const std::int64_t stride = sums.stride * std::int64_t(sizeof(float));
    const auto strip = [&](int i) { return sums.data + i / 2 * kStripRows * sums.stride + i % 2 * kStripColumns; };
    const auto has = [](int i) { return i / 2 < Rows && i % 2 < Columns; };
    const bool adds = tile.adds, fetches = !adds && !tile.out.index;
    const int k = tile.k;
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++)
        if (has(i) && adds) tiles.load(kBlockSum + i, strip(i), stride);
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++)
        if (has(i) && !adds) tiles.zero(kBlockSum + i);
    // Prefetches the cache lines that the accumulators are stored to.
    for (int r = 0; r < Rows * kStripRows && fetches; r++)
        for (int c = 0; c < Columns; c++) tiles.fetch(sums.data + r * sums.stride + c * kStripColumns);
    const float *left = tile.left.data, *right = tile.right;
    for (int begin = 0; begin < k; begin += kStripInputs) {
        add_step<Rows, Columns>(tiles, left, right);
        left += kBlockRows * kStepPairs, right += kBlockColumns * kStepPairs;
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++)
        if (has(i)) tiles.store(kBlockSum + i, strip(i), stride);
}

template <int Rows, int Columns, class Registers>
void multiply_block(Registers& tiles, const ProductTile& tile) {
    const bool whole = tile.num_rows == Rows * kStripRows && tile.num_columns == Columns * kStripColumns;
    if (whole && !tile.out.index) return sum_block<Rows, Columns>(tiles, tile, tile.out);
    alignas(64) float sums[kBlockRows][kBlockColumns];
    // A constant size avoids the call of memcpy, which takes most of the time of a short copy.
    const auto copy = [&](const float* from, float* to) {
        if (tile.num_columns == Columns * kStripColumns)
            __builtin_memcpy(to, from, Columns * kStripColumns * sizeof(float));
        else
            __builtin_memcpy(to, from, tile.num_columns * sizeof(float));
    };
    for (int r = 0; r < tile.num_rows && tile.adds; r++) copy(tile.out.row(r), sums[r]);
    sum_block<Rows, Columns>(tiles, tile, {sums[0], kBlockColumns});
    for (int r = 0; r < tile.num_rows; r++) copy(sums[r], tile.out.row(r));
}

template <class Registers>
void multiply_blocks(const ProductTile* blocks, int count) {
    static constexpr TileConfig config = whole_tiles();
    Registers tiles(config);
    for (int t = 0; t < count; t++) {
        const ProductTile& tile = blocks[t];
        const bool tall = tile.num_rows > kStripRows, wide = tile.num_columns > kStripColumns;
        if (tall && wide)
            multiply_block<2, 2>(tiles, tile);
        else if (tall)
            multiply_block<2, 1>(tiles, tile);
        else if (wide)
            multiply_block<1, 2>(tiles, tile);
        else
            multiply_block<1, 1>(tiles, tile);
    }
}

using Square = std::uint32_t[kStepPairs][kStepPairs];
static_assert(kStepPairs == kStripColumns && kStepPairs == kStripRows);

// Makes cells, 16 at a time, on any processor. A cell is a pair of bfloat16.
struct PlainCells {
    // Makes the cells of two rows, one for each column. A null row counts as zeros, and so do columns from `count` on.
    static LANES void of_columns(const float* even, const float* odd, int count, std::uint32_t* cells) {
        const auto at = [&](const float* row, int c) { return row && c < count ? row[c] : 0.0f; };
        for (int c = 0; c < kStripColumns; c++) cells[c] = bf16_pair(at(even, c), at(odd, c));
    }
    // Makes the cells of the inputs of one row. Inputs from `count` on are zeros.
    static LANES void of_inputs(const float* row, int count, std::uint32_t* cells) {
        const auto at = [&](int i) { return i < count ? row[i] : 0.0f; };
        for (int p = 0; p < kStepPairs; p++) cells[p] = bf16_pair(at(2 * p), at(2 * p + 1));
    }
    // Like of_columns, for rows that are already bfloat16.
    static LANES void of_kept_columns(const std::uint16_t* even, const std::uint16_t* odd, int count,
                                      std::uint32_t* cells) {
        const auto at = [&](const std::uint16_t* row, int c) { return row && c < count ? std::uint32_t(row[c]) : 0; };
        for (int c = 0; c < kStripColumns; c++) cells[c] = at(even, c) | at(odd, c) << 16;
    }
    // Converts 16 bfloat16 to floats.
    static LANES void load(const std::uint16_t* kept, float* row) {
        for (int i = 0; i < 16; i++) {
            const std::uint32_t bits = std::uint32_t(kept[i]) << 16;
            __builtin_memcpy(row + i, &bits, sizeof bits);
        }
    }
    // to[c][r] = from[r][c].
    static LANES void transpose(const Square& from, std::uint32_t* to, std::ptrdiff_t stride) {
        for (int r = 0; r < kStepPairs; r++)
            for (int c = 0; c < kStepPairs; c++) to[c * stride + r] = from[r][c];
    }
};

// Makes the cells of columns [column, column + count) of rows i and i + 1. Rows from k on count as zeros.
template <class Cells>
LANES void pair_rows(const View& rows, int k, int i, int column, int count, std::uint32_t* cells) {
    const float *even = i < k ? rows.row(i) : nullptr, *odd = i + 1 < k ? rows.row(i + 1) : nullptr;
    const auto kept = [&](const float* row) { return row ? (const std::uint16_t*)row + column : nullptr; };
    if (rows.kept)
        Cells::of_kept_columns(kept(even), kept(odd), count, cells);
    else
        Cells::of_columns(even ? even + column : even, odd ? odd + column : odd, count, cells);
}

// Makes the cells of inputs [begin, begin + count) of a row. Rows that are already bfloat16 are padded and are copied.
template <class Cells>
LANES void pair_inputs(const View& rows, int row, int begin, int count, std::uint32_t* cells) {
    if (rows.kept)
        __builtin_memcpy(cells, rows.row(row) + begin / 2, kTileBytes);
    else
        Cells::of_inputs(rows.row(row) + begin, count, cells);
}

constexpr int kRowsAhead = 6;
// Prefetches inputs of a row. Rows by index are not contiguous, so the hardware does not prefetch them.
LANES void fetch_inputs(const View& rows, int row, int begin, int k) {
    const float* from = rows.row(row) + (rows.kept ? begin / 2 : begin);
    for (int i = 0; i < (rows.kept ? k / 2 : k); i += 16) __builtin_prefetch(from + i, 0, 3);
}

template <class Cells>
void pack_block_columns(View rows, int k, int column, int count, float* panel) {
    auto* cells = (std::uint32_t*)panel;
    for (int i = 0; i < k || i % kStripInputs; i += 2, cells += kBlockColumns)
        for (int c = 0; c < kBlockColumns; c += kStripColumns)
            pair_rows<Cells>(rows, k, i, column + c, count - c, cells + c);
}

template <class Cells>
void pack_block_rows(View rows, int count, int k, float* panel) {
    auto* cells = (std::uint32_t*)panel;
    for (int begin = 0; begin < k; begin += kStripInputs, cells += kStepPairs * kBlockColumns)
        for (int strip = 0; strip < kBlockColumns; strip += kStripColumns) {
            Square square = {};
            for (int c = 0; c < kStripColumns && strip + c < count; c++)
                pair_inputs<Cells>(rows, strip + c, begin, k - begin, square[c]);
            Cells::transpose(square, cells + strip, kBlockColumns);
        }
}

template <class Cells>
void pack_left_block_columns(View rows, int k, int column, int count, float* tile) {
    auto* cells = (std::uint32_t*)tile;
    for (int begin = 0; begin < k; begin += kStripInputs, cells += kBlockRows * kStepPairs)
        for (int first = 0; first < count; first += kStripRows) {
            Square square;
            for (int p = 0; p < kStepPairs; p++)
                pair_rows<Cells>(rows, k, begin + 2 * p, column + first, count - first, square[p]);
            Cells::transpose(square, cells + first * kStepPairs, kStepPairs);
        }
}

template <class Cells>
void pack_left_block_rows(View rows, int count, int begin, int k, float* tile) {
    for (int r = 0; r < count || r % kStripRows; r++) {
        if (rows.index && r + kRowsAhead < count) fetch_inputs(rows, r + kRowsAhead, begin, k);
        auto* cells = (std::uint32_t*)tile + r * kStepPairs;
        for (int step = 0; step < k; step += kStripInputs, cells += kBlockRows * kStepPairs)
            if (r < count)
                pair_inputs<Cells>(rows, r, begin + step, k - step, cells);
            else
                __builtin_memset(cells, 0, kTileBytes);
    }
}

template <class Cells>
void keep(const float* row, int n, float* kept) {
    auto* cells = (std::uint32_t*)kept;
    for (int i = 0; i < n; i += kStripInputs, cells += kStepPairs) Cells::of_inputs(row + i, n - i, cells);
}

// Converts n bfloat16 to floats. It writes whole vectors: up to 15 elements more than n.
template <class Cells>
void load(const float* kept, int n, float* row) {
    for (int i = 0; i < n; i += 16) Cells::load((const std::uint16_t*)kept + i, row + i);
}

template <class Registers, class Cells>
constexpr FloatProducts tile_products{kBlockRows,
                                      kBlockColumns,
                                      kStripRows,
                                      kStripInputs,
                                      2,
                                      multiply_blocks<Registers>,
                                      pack_block_columns<Cells>,
                                      pack_block_rows<Cells>,
                                      pack_left_block_columns<Cells>,
                                      pack_left_block_rows<Cells>,
                                      0,
                                      keep<Cells>,
                                      load<Cells>};
