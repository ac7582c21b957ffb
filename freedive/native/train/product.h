// Products of float matrices: rows by a packed matrix, and columns by columns. The order of each sum depends neither on
// the number of threads nor on the other rows.
#pragma once

#include <span>

#include "../isa/train.h"
#include "../threads.h"
#include "arena.h"

namespace freedive {

// A right factor [k, columns], packed in panels from `source` or from its transpose.
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
    // The address of input `row` in the panel that begins with `column`.
    float* at(const FloatProducts& products, int column, int row = 0) const {
        return data + products.cells(k) * column + products.cells(row) * products.tile_columns;
    }
    void pack(const FloatProducts& products, int panel) const;
};

// The right factors that a layer with weight [out, in] multiplies its input rows by, and its output gradients.
inline Panels forward_panels(const float* weight, int out, int in) { return {{weight, in}, in, out, true}; }
inline Panels backward_panels(const float* weight, int out, int in) { return {{weight, in}, out, in, false}; }

// Divides rows into tiles of nearly equal height, since small tiles would leave the multipliers idle.
struct Cut {
    Cut(const FloatProducts& products, int num_rows);
    int num_rows, step, tiles, least, taller;  // the first `taller` tiles are one step higher
    int begin(int tile) const { return std::min(num_rows, (tile * least + std::min(tile, taller)) * step); }
    int height(int tile) const { return begin(tile + 1) - begin(tile); }
};

// A left factor in packed tiles: `cut.num_rows` columns of up to k rows.
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

    // Packs rows [row, row + count); `row` is a multiple of the step.
    void pack(View rows, int row, int count) const {
        for (int t = 0; t < cut.tiles; t++)
            products.pack_left_columns(rows, count, cut.begin(t), cut.height(t),
                                       data + t * tile_size + products.cells(row) * products.tile_rows);
    }
};

// Rows of several parts, kept for the backward pass: in bfloat16 if the factors of products are, else in float32.
struct Kept {
    Kept(const FloatProducts& products, float* data, int dim, int parts = 1)
        : products(&products), data(data), dim(dim), width(width_of(products, dim)), stride(parts * width) {}
    static std::ptrdiff_t width_of(const FloatProducts& products, int dim) {
        return products.keep ? products.cells(dim) : dim;
    }
    const FloatProducts* products;
    float* data;
    int dim;
    std::ptrdiff_t width, stride;  // of one part, and of a row, in floats

    bool halves() const { return products->keep; }
    float* at(std::ptrdiff_t row, int part = 0) const { return data + row * stride + part * width; }
    View view(std::ptrdiff_t row = 0, int part = 0, const int* index = nullptr) const {
        return {at(row, part), stride, index, halves()};
    }
    // Returns a row as floats: in place, or converted into `own`.
    const float* read(float* kept, float* own) const {
        if (!halves()) return kept;
        products->load(kept, dim, own);
        return own;
    }
    // Returns where to compute a row before write() stores it.
    float* place(float* kept, float* own) const { return halves() ? own : kept; }
    void write(const float* row, float* kept) const {
        if (halves()) products->keep(row, dim, kept);
    }
};

// Packs all panels of a factor on one thread. Its memory must be allocated.
void pack(const FloatProducts& products, const Panels& factor);
// Packs all panels of several factors on all threads, inside a job. Their memory must be allocated.
void pack(const FloatProducts& products, Team& team, std::span<const Panels> factors);

// A right factor, and where the product is written or, if `adds`, added.
struct Product {
    const Panels& right;
    MutableView out;
    bool adds;
};
// Left columns of an outer product out [width, ...].
struct OuterProduct {
    View left;
    int width;
    MutableView out;
};

// Computes products on one thread, with memory for their left factors.
class Multiplier {
  public:
    explicit Multiplier(const FloatProducts& products) : products_(products) {}

    // For each of `all`: out [num_rows, columns] = left [num_rows, inner] times the first `inner` rows of `right`.
    void multiply(View left, int num_rows, int inner, std::span<const Product> all);
    void multiply(View left, int num_rows, const Panels& right, MutableView out, bool adds = false) {
        const Product product{right, out, adds};
        multiply(left, num_rows, right.k, {&product, 1});
    }

    // out [width, columns] = left^T right, or added to it if `adds`. `left` has k rows, in order.
    void multiply_columns(View left, int width, const Panels& right, MutableView out, bool adds);
    // The same for tiles [begin, end) of a packed factor; `out` begins with the row of its first column.
    void multiply_columns(const PackedColumns& left, int begin, int end, const Panels& right, MutableView out,
                          bool adds);

    // The same for each of `all`, whose num_rows rows are not packed yet: out [width, right_width].
    void multiply_outer(std::span<const OuterProduct> all, View right, int right_width, int num_rows, bool adds);

  private:
    // Computes all columns for tiles_, whose left factors and outputs are set; starts at input `begin` of `right`.
    void sweep(const Panels& right, int begin, bool adds);

    const FloatProducts& products_;
    Arena arena_;
    std::vector<ProductTile> tiles_, all_;  // of one panel, with their left factors set; of all panels
};

}  // namespace freedive
