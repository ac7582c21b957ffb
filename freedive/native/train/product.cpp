#include "product.h"

namespace freedive {
namespace {

constexpr int kLineFloats = 16;   // of a cache line
constexpr int kInner = 512;       // inputs whose products are summed in registers, then added to the output
constexpr int kOuterRows = 256;   // likewise of rows, in products of columns
constexpr int kBandColumns = 96;  // of a left factor, packed at once: with its rows they stay in the second cache

// Tiles of nearly equal height that rows are cut into: small ones would leave the multipliers waiting.
struct Cut {
    explicit Cut(int num_rows)
        : tiles((num_rows + kLeftRows - 1) / kLeftRows),
          least(tiles ? num_rows / tiles : 0),
          taller(num_rows - least * tiles) {}
    int tiles, least, taller;  // the first `taller` ones have a row more
    int begin(int tile) const { return tile * least + std::min(tile, taller); }
    int height(int tile) const { return least + (tile < taller); }
};

// Asks for the numbers [begin, begin + count) of rows that are to be read soon.
void fetch(View rows, int num_rows, int begin, int count) {
    for (int r = 0; r < num_rows; r++)
        for (int i = 0; i < count; i += kLineFloats) __builtin_prefetch(rows.row(r) + begin + i, 0, 2);
}

}  // namespace

void Panels::pack(const TrainKernels& kernels, int panel) const {
    const int first = panel * kernels.tile_columns, count = std::min(kernels.tile_columns, columns - first);
    float* to = data + std::ptrdiff_t(first) * k;
    if (transposed)
        kernels.pack_rows(source.from(first), count, k, to);
    else
        kernels.pack_columns(source, k, first, count, to);
}

// Rows are packed a few at a time: columns of all of them would crowd each other out of the first cache.
constexpr int kPackedRows = 16;

void pack(const TrainKernels& kernels, const Panels& factor) {
    const int width = kernels.tile_columns;
    if (factor.transposed)
        for (int panel = 0; panel < factor.count(kernels); panel++) factor.pack(kernels, panel);
    for (int row = 0; !factor.transposed && row < factor.k; row += kPackedRows)
        for (int column = 0; column < factor.columns; column += width)
            kernels.pack_columns(factor.source.from(row), std::min(kPackedRows, factor.k - row), column,
                                 std::min(width, factor.columns - column),
                                 factor.data + std::ptrdiff_t(column) * factor.k + row * width);
}

void pack(const TrainKernels& kernels, Team& team, std::span<const Panels> factors) {
    int total = 0;
    for (const Panels& factor : factors) total += factor.count(kernels);
    team.for_each(total, 8, [&](int panel) {
        for (const Panels& factor : factors) {
            if (panel < factor.count(kernels)) return factor.pack(kernels, panel);
            panel -= factor.count(kernels);
        }
    });
}

void multiply(const TrainKernels& kernels, View left, int num_rows, const Panels& right, MutableView out, bool adds,
              int inner) {
    const Cut cut(num_rows);
    FloatTile tile;
    tile.step = 1;
    for (int begin = 0; begin < inner; begin += kInner) {
        tile.k = std::min(kInner, inner - begin);
        tile.adds = adds || begin;
        for (int column = 0; column < right.columns; column += kernels.tile_columns) {
            tile.right = right.data + std::ptrdiff_t(column) * right.k + begin * kernels.tile_columns;
            tile.num_columns = std::min(kernels.tile_columns, right.columns - column);
            for (int t = 0; t < cut.tiles; t++) {
                const int row = cut.begin(t);
                if (!column && t + 1 < cut.tiles)
                    fetch(left.from(row + cut.height(t)), cut.height(t + 1), begin, tile.k);
                tile.num_rows = cut.height(t);
                for (int r = 0; r < tile.num_rows; r++) {
                    tile.left[r] = left.row(row + r) + begin;
                    tile.out[r] = out.row(row + r) + column;
                }
                kernels.multiply(tile);
            }
        }
    }
}

namespace {

// As multiply_columns; left_of(t) is where a tile's part of the left factor begins.
template <class LeftOf>
void multiply_tiles(const TrainKernels& kernels, Cut cut, LeftOf&& left_of, std::ptrdiff_t step, const Panels& right,
                    MutableView out, bool adds) {
    FloatTile tile;
    tile.step = step;
    tile.k = right.k;
    tile.adds = adds;
    for (int column = 0; column < right.columns; column += kernels.tile_columns) {
        tile.right = right.data + std::ptrdiff_t(column) * right.k;
        tile.num_columns = std::min(kernels.tile_columns, right.columns - column);
        for (int t = 0; t < cut.tiles; t++) {
            const MutableView to = out.from(cut.begin(t)).columns_from(column);
            tile.num_rows = cut.height(t);
            for (int r = 0; r < tile.num_rows; r++) tile.left[r] = left_of(t) + r, tile.out[r] = to.row(r);
            kernels.multiply(tile);
        }
    }
}

void pack_band(const TrainKernels& kernels, View left, int num_rows, Cut cut, float* band) {
    for (int row = 0; row < num_rows; row += kPackedRows)
        for (int t = 0; t < cut.tiles; t++)
            kernels.pack_left(left.from(row), std::min(kPackedRows, num_rows - row), cut.begin(t), cut.height(t),
                              band + (std::ptrdiff_t(t) * num_rows + row) * kLeftRows);
}

}  // namespace

void multiply_columns(const TrainKernels& kernels, View left, int width, const Panels& right, MutableView out,
                      bool adds) {
    const Cut cut(width);
    const auto left_of = [&](int t) { return left.data + cut.begin(t); };
    multiply_tiles(kernels, cut, left_of, left.stride, right, out, adds);
}

void multiply_outer(const TrainKernels& kernels, View left, int width, View right, int right_width, int num_rows,
                    MutableView out, bool adds, Arena& arena) {
    arena.clear();
    const int most = std::min(kOuterRows, num_rows);
    Panels panels{right, most, right_width, false};
    panels.data = arena.take(panels.size(kernels));
    float* band = arena.take(std::size_t(kBandColumns) * most);
    if (!num_rows && !adds)
        for (int i = 0; i < width; i++) std::fill_n(out.row(i), right_width, 0.0f);
    for (int row = 0; row < num_rows; row += most) {
        panels.source = right.from(row), panels.k = std::min(most, num_rows - row);
        pack(kernels, panels);
        for (int column = 0; column < width; column += kBandColumns) {
            const Cut cut(std::min(kBandColumns, width - column));
            pack_band(kernels, left.from(row).columns_from(column), panels.k, cut, band);
            const auto left_of = [&](int t) { return band + std::ptrdiff_t(t) * panels.k * kLeftRows; };
            multiply_tiles(kernels, cut, left_of, kLeftRows, panels, out.from(column), adds || row);
        }
    }
}

}  // namespace freedive
