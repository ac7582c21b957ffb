// FloatProducts of float matrices: rows by a packed matrix, and columns by columns. Sums have one order, whatever the
// threads and the rows beside.
#pragma once

#include <span>

#include "../isa/train.h"
#include "../threads.h"
#include "arena.h"

namespace freedive {

// A right factor [k, columns] in panels. It is made of `source`: as it is, or transposed.
struct Panels {
    View source;
    int k, columns;
    bool transposed;
    float* data = nullptr;

    int count(const FloatProducts& products) const {
        return (columns + products.tile_columns - 1) / products.tile_columns;
    }
    std::size_t size(const FloatProducts& products) const {
        return products.cells(k) * count(products) * products.tile_columns;
    }
    // Where the panel that begins with `column` has the input `row`.
    float* at(const FloatProducts& products, int column, int row = 0) const {
        return data + products.cells(k) * column + products.cells(row) * products.tile_columns;
    }
    void pack(const FloatProducts& products, int panel) const;
};

// What rows of `in` numbers are multiplied by, given a weight [out, in]; and what their gradients are.
inline Panels forward_panels(const float* weight, int out, int in) { return {{weight, in}, in, out, true}; }
inline Panels backward_panels(const float* weight, int out, int in) { return {{weight, in}, out, in, false}; }

// Tiles of nearly equal height that rows are cut into: small ones would leave the multipliers waiting.
struct Cut {
    Cut(const FloatProducts& products, int num_rows);
    int num_rows, step, tiles, least, taller;  // the first `taller` ones have a step more
    int begin(int tile) const { return std::min(num_rows, (tile * least + std::min(tile, taller)) * step); }
    int height(int tile) const { return begin(tile + 1) - begin(tile); }
};

// A left factor: `cut.num_rows` columns of up to k rows, packed in tiles.
struct PackedColumns {
    PackedColumns(const FloatProducts& products, int columns, int k, Arena& arena)
        : products(products),
          cut(products, columns),
          tile_size(products.cells(k) * products.tile_rows),
          data(arena.take(tile_size * cut.tiles)) {}
    const FloatProducts& products;
    Cut cut;
    std::ptrdiff_t tile_size;
    float* data;

    // Rows [row, row + count), which begin with a whole step.
    void pack(View rows, int row, int count) const {
        for (int t = 0; t < cut.tiles; t++)
            products.pack_left_columns(rows, count, cut.begin(t), cut.height(t),
                                       data + t * tile_size + products.cells(row) * products.tile_rows);
    }
};

// Rows of several parts in the form that is kept for later: halves where factors are, else the floats themselves.
struct Kept {
    Kept(const FloatProducts& products, float* data, int dim, int parts = 1)
        : products(&products), data(data), dim(dim), width(width_of(products, dim)), stride(parts * width) {}
    static std::ptrdiff_t width_of(const FloatProducts& products, int dim) {
        return products.keep ? products.cells(dim) : dim;
    }
    const FloatProducts* products;
    float* data;
    int dim;
    std::ptrdiff_t width, stride;  // of a part, and of all

    bool halves() const { return products->keep; }
    float* at(std::ptrdiff_t row, int part = 0) const { return data + row * stride + part * width; }
    View view(std::ptrdiff_t row = 0, int part = 0, const int* index = nullptr) const {
        return {at(row, part), stride, index, halves()};
    }
    // A row as floats: in place, or in memory of the reader.
    const float* read(float* kept, float* own) const {
        if (!halves()) return kept;
        products->load(kept, dim, own);
        return own;
    }
    // Where a row can be made, to be written then.
    float* place(float* kept, float* own) const { return halves() ? own : kept; }
    void write(const float* row, float* kept) const {
        if (halves()) products->keep(row, dim, kept);
    }
};

// One thread packs a factor that has memory, its rows in order.
void pack(const FloatProducts& products, const Panels& factor);
// Inside a job: all threads pack all panels of factors that have memory.
void pack(const FloatProducts& products, Team& team, std::span<const Panels> factors);

// What rows are multiplied by, and where that is written or added.
struct Product {
    const Panels& right;
    MutableView out;
    bool adds;
};
// Columns whose products with other columns make a matrix: out [width, ...].
struct OuterProduct {
    View left;
    int width;
    MutableView out;
};

// A thread's own: products, and memory for their left factors.
class Multiplier {
  public:
    explicit Multiplier(const FloatProducts& products) : products_(products) {}

    // For each of `all`: out [num_rows, columns] = left [num_rows, inner] right; of `right` the first `inner` rows.
    void multiply(View left, int num_rows, int inner, std::span<const Product> all);
    void multiply(View left, int num_rows, const Panels& right, MutableView out, bool adds = false) {
        const Product product{right, out, adds};
        multiply(left, num_rows, right.k, {&product, 1});
    }

    // out [width, columns] = left^T right, where left has k rows (all of them in order), or that added.
    void multiply_columns(View left, int width, const Panels& right, MutableView out, bool adds);
    // Likewise of some tiles [begin, end) of a packed factor; `out` begins with its first column.
    void multiply_columns(const PackedColumns& left, int begin, int end, const Panels& right, MutableView out,
                          bool adds);

    // Likewise for each of `all`, of num_rows rows each that are not packed yet: out [width, right_width].
    void multiply_outer(std::span<const OuterProduct> all, View right, int right_width, int num_rows, bool adds);

  private:
    // Goes over the columns, for tiles that know their left factors and outputs; `right` begins with its input `begin`.
    void sweep(const Panels& right, int begin, bool adds);

    const FloatProducts& products_;
    Arena arena_;
    std::vector<ProductTile> tiles_, all_;  // of a panel, which know their left factors; and of all
};

}  // namespace freedive
