#include "product.h"

namespace freedive {
namespace {

constexpr int kInner = 512;       // inputs whose products are summed in registers before they are added to the output
constexpr int kOuterRows = 256;   // the same limit for the rows of outer products
constexpr int kBandColumns = 96;  // columns of a left factor that are packed together and stay in the L2 cache
constexpr int kPackedRows = 16;   // rows that are packed together: columns of more rows would evict each other from L1

int divided(int count, int by) { return (count + by - 1) / by; }

// Calls pack(row, count) for a few rows at a time. Meanwhile `width` elements of each of the next rows are prefetched,
// because the hardware does not prefetch rows that are far apart.
template <class Pack>
void for_rows(const FloatProducts& products, View rows, int num_rows, int width, Pack&& pack) {
    const int step = std::max(kPackedRows, products.input_step), cells = rows.kept ? width / 2 : width;
    for (int row = 0; row < num_rows; row += step) {
        for (int next = row + step; next < std::min(row + 2 * step, num_rows); next++)
            for (int i = 0; i < cells; i += 16) __builtin_prefetch(rows.row(next) + i, 0, 2);
        pack(row, std::min(step, num_rows - row));
    }
}

}  // namespace

void Panels::pack(const FloatProducts& products, int panel) const {
    const int first = panel * products.tile_columns, count = std::min(products.tile_columns, columns - first);
    if (transposed)
        products.pack_rows(source.from(first), count, k, at(products, first));
    else
        products.pack_columns(source, k, first, count, at(products, first));
}

void pack(const FloatProducts& products, const Panels& factor) {
    if (factor.transposed)
        for (int panel = 0; panel < factor.count(products); panel++) factor.pack(products, panel);
    else
        for_rows(products, factor.source, factor.k, factor.columns, [&](int row, int count) {
            for (int column = 0; column < factor.columns; column += products.tile_columns)
                products.pack_columns(factor.source.from(row), count, column,
                                      std::min(products.tile_columns, factor.columns - column),
                                      factor.at(products, column, row));
        });
}

void pack(const FloatProducts& products, Team& team, std::span<const Panels> factors) {
    int total = 0;
    for (const Panels& factor : factors) total += factor.count(products);
    team.for_each(total, 8, [&](int panel) {
        for (const Panels& factor : factors) {
            if (panel < factor.count(products)) return factor.pack(products, panel);
            panel -= factor.count(products);
        }
    });
}

Cut::Cut(const FloatProducts& products, int num_rows)
    : num_rows(num_rows),
      step(products.row_step),
      tiles(divided(num_rows, products.tile_rows)),
      least(tiles ? divided(num_rows, step) / tiles : 0),
      taller(divided(num_rows, step) - least * tiles) {}

void Multiplier::sweep(const Panels& right, int begin, bool adds) {
    all_.clear();
    for (int column = 0; column < right.columns; column += products_.tile_columns)
        for (const ProductTile& each : tiles_) {
            ProductTile& tile = all_.emplace_back(each);
            tile.right = right.at(products_, column, begin);
            tile.num_columns = std::min(products_.tile_columns, right.columns - column);
            tile.adds = adds;
            tile.out = each.out.columns_from(column);
        }
    products_.multiply(all_.data(), int(all_.size()));
}

void Multiplier::multiply(View left, int num_rows, int inner, std::span<const Product> all) {
    arena_.clear();
    const Cut cut(products_, num_rows);
    tiles_.resize(cut.tiles);
    const std::ptrdiff_t size = products_.cells(std::min(kInner, inner)) * products_.tile_rows;
    float* packed = products_.pack_left_rows ? arena_.take(cut.tiles * size) : nullptr;
    for (int begin = 0; begin < inner; begin += kInner) {
        const int k = std::min(kInner, inner - begin);
        for (int t = 0; t < cut.tiles; t++) {
            const View rows = left.from(cut.begin(t));
            tiles_[t] = {rows.columns_from(begin), 1, nullptr, k, cut.height(t), 0, false, {}};
            if (!packed) continue;
            products_.pack_left_rows(rows, cut.height(t), begin, k, packed + t * size);
            tiles_[t].left = {packed + t * size, 1}, tiles_[t].step = products_.left_step;
        }
        for (const Product& each : all) {
            for (int t = 0; t < cut.tiles; t++) tiles_[t].out = each.out.from(cut.begin(t));
            sweep(each.right, begin, each.adds || begin);
        }
    }
}

void Multiplier::multiply_columns(View left, int width, const Panels& right, MutableView out, bool adds) {
    arena_.clear();
    if (products_.pack_left_rows) {
        const PackedColumns packed(products_, width, right.k, arena_);
        for_rows(products_, left, right.k, width, [&](int row, int count) { packed.pack(left.from(row), row, count); });
        return multiply_columns(packed, 0, packed.cut.tiles, right, out, adds);
    }
    const Cut cut(products_, width);
    tiles_.clear();
    for (int t = 0; t < cut.tiles; t++)
        tiles_.push_back({{left.data + cut.begin(t), 1},
                          left.stride,
                          nullptr,
                          right.k,
                          cut.height(t),
                          0,
                          false,
                          out.from(cut.begin(t))});
    sweep(right, 0, adds);
}

void Multiplier::multiply_columns(const PackedColumns& left, int begin, int end, const Panels& right, MutableView out,
                                  bool adds) {
    tiles_.clear();
    for (int t = begin; t < end; t++)
        tiles_.push_back({{left.data + t * left.tile_size, 1},
                          products_.left_step,
                          nullptr,
                          right.k,
                          left.cut.height(t),
                          0,
                          false,
                          out.from(left.cut.begin(t))});
    sweep(right, 0, adds);
}

void Multiplier::multiply_outer(std::span<const OuterProduct> all, View right, int right_width, int num_rows,
                                bool adds) {
    if (all.empty()) return;
    arena_.clear();
    const int most = std::min(kOuterRows, num_rows);
    Panels panels{right, most, right_width, false};
    panels.data = arena_.take(panels.size(products_));
    PackedColumns packed(products_, kBandColumns, most, arena_);
    for (const OuterProduct& each : all)
        if (!num_rows && !adds)
            for (int i = 0; i < each.width; i++) std::fill_n(each.out.row(i), right_width, 0.0f);
    for (int row = 0; row < num_rows; row += most) {
        panels.source = right.from(row), panels.k = std::min(most, num_rows - row);
        pack(products_, panels);
        for (const auto& [left, width, out] : all)
            for (int column = 0; column < width; column += kBandColumns) {
                packed.cut = Cut(products_, std::min(kBandColumns, width - column));
                const View band = left.from(row).columns_from(column);
                for_rows(products_, band, panels.k, packed.cut.num_rows,
                         [&](int at, int count) { packed.pack(band.from(at), at, count); });
                multiply_columns(packed, 0, packed.cut.tiles, panels, out.from(column), adds || row);
            }
    }
}

}  // namespace freedive
