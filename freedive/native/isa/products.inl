// FloatProducts of float matrices: tiles whose accumulators stay in registers; included by kernels.inl. The order of
// summation of an element does not depend on its tile. With Precision::Bfloat16, packing rounds both factors.

constexpr int kLeftRows = 6, kTileColumns = 16 * kTileVectors;

// Loads the first `count` elements of a vector; the other lanes are 0.
LANES F load_some(const float* from, int count) {
    if (count >= 16) return f_load(from);
    float x[16] = {};
    for (int i = 0; i < count; i++) x[i] = from[i];
    return f_load(x);
}
LANES void store_some(float* to, F v, int count) {
    if (count >= 16) return f_store(to, v);
    float x[16];
    f_store(x, v);
    for (int i = 0; i < count; i++) to[i] = x[i];
}

// Stores a vector of sums, or adds it to `out` if `adds` is true.
LANES void put(float* out, F sum, bool adds, int count) {
    store_some(out, adds ? f_add(load_some(out, count), sum) : sum, count);
}

// The function is not inlined because its accumulators need all registers.
template <int R>
__attribute__((noinline)) void multiply_rows(const ProductTile& tile) {
    F sum[R][kTileVectors];
    const float* left[R];
    float* out[R];
    for (int r = 0; r < R; r++) {
        left[r] = tile.left.row(r), out[r] = tile.out.row(r);
        for (int v = 0; v < kTileVectors; v++) {
            sum[r][v] = f_set(0.0f);
            __builtin_prefetch(out[r] + 16 * v, 1, 3);
        }
    }
    const std::ptrdiff_t step = tile.step, size = std::ptrdiff_t(tile.k) * kTileColumns;
    const float *right = tile.right, *end = right + size;
    for (std::ptrdiff_t at = 0; right != end; right += kTileColumns, at += step) {
        F row[kTileVectors];
        for (int v = 0; v < kTileVectors; v++) {
            row[v] = f_load(right + 16 * v);
            __builtin_prefetch(right + size + 16 * v, 0, 2);  // the next panel
        }
        for (int r = 0; r < R; r++) {
            const F factor = f_set(left[r][at]);
            for (int v = 0; v < kTileVectors; v++) sum[r][v] = f_fma(factor, row[v], sum[r][v]);
        }
    }
    if (tile.num_columns == kTileColumns && tile.adds) {
#pragma GCC unroll 8  // without it the accumulators are spilled to memory
        for (int r = 0; r < R; r++)
            for (int v = 0; v < kTileVectors; v++) put(out[r] + 16 * v, sum[r][v], true, 16);
    } else if (tile.num_columns == kTileColumns) {
#pragma GCC unroll 8
        for (int r = 0; r < R; r++)
            for (int v = 0; v < kTileVectors; v++) put(out[r] + 16 * v, sum[r][v], false, 16);
    } else {
        for (int r = 0; r < R; r++)
            for (int v = 0; 16 * v < tile.num_columns; v++)
                put(out[r] + 16 * v, sum[r][v], tile.adds, tile.num_columns - 16 * v);
    }
}

template <int R = kLeftRows>
void multiply_tile(const ProductTile& tile) {
    if constexpr (R > 1)
        if (tile.num_rows < R) return multiply_tile<R - 1>(tile);
    multiply_rows<R>(tile);
}

// Prefetches the left rows of the next tile.
LANES void fetch_left(const ProductTile& tile) {
    if (tile.step != 1) return;
    for (int r = 0; r < tile.num_rows; r++)
        for (int i = 0; i < tile.k; i += 16) __builtin_prefetch(tile.left.row(r) + i, 0, 2);
}

void multiply_tiles(const ProductTile* tiles, int count) {
    for (int t = 0; t < count; t++) {
        if (t + 1 < count) fetch_left(tiles[t + 1]);
        multiply_tile(tiles[t]);
    }
}

template <Precision P>
LANES float factor_of(float x) {
    return P == Precision::Float32 ? x : nearest_bf16(x);
}

template <Precision P>
void pack_columns(View rows, int k, int column, int count, float* panel) {
    for (int i = 0; i < k; i++, panel += kTileColumns) {
        const float* row = rows.row(i) + column;
        for (int v = 0; v < kTileVectors; v++) f_store(panel + 16 * v, load_some(row + 16 * v, count - 16 * v));
        if (P != Precision::Float32)
            for (int c = 0; c < kTileColumns; c++) panel[c] = factor_of<P>(panel[c]);
    }
}

template <Precision P>
void pack_rows(View rows, int count, int k, float* panel) {
    for (int c = 0; c < kTileColumns; c++) {
        const float* row = c < count ? rows.row(c) : nullptr;
        for (int i = 0; i < k; i++) panel[std::ptrdiff_t(i) * kTileColumns + c] = row ? factor_of<P>(row[i]) : 0.0f;
    }
}

template <Precision P>
void pack_left_columns(View rows, int k, int column, int count, float* tile) {
    for (int i = 0; i < k; i++, tile += kLeftRows) {
        const float* row = rows.row(i) + column;
        if (count == kLeftRows)
            for (int r = 0; r < kLeftRows; r++) tile[r] = factor_of<P>(row[r]);
        else
            for (int r = 0; r < count; r++) tile[r] = factor_of<P>(row[r]);
    }
}

template <Precision P>
void pack_left_rows(View rows, int count, int begin, int k, float* tile) {
    for (int r = 0; r < count; r++) {
        const float* row = rows.row(r) + begin;
        for (int i = 0; i < k; i++) tile[i * kLeftRows + r] = factor_of<P>(row[i]);
    }
}

template <Precision P>
constexpr FloatProducts products{kLeftRows,
                                 kTileColumns,
                                 1,
                                 1,
                                 1,
                                 multiply_tiles,
                                 pack_columns<P>,
                                 pack_rows<P>,
                                 pack_left_columns<P>,
                                 P == Precision::Float32 ? nullptr : pack_left_rows<P>,
                                 kLeftRows,
                                 nullptr,
                                 nullptr};
