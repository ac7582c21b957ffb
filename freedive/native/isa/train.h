// What training needs of an instruction-set level: products of float matrices, and arithmetic on rows. Widths are any.
#pragma once

#include <cstddef>

namespace freedive {

// A row-major matrix, or those of its rows that `index` names. Kept rows are cells, as FloatProducts packs them.
struct View {
    const float* data;
    std::ptrdiff_t stride;  // from row to row, in numbers, or cells
    const int* index = nullptr;
    bool kept = false;
    const float* row(int i) const { return data + stride * (index ? index[i] : i); }
    View from(int row) const {
        return index ? View{data, stride, index + row, kept} : View{data + stride * row, stride, nullptr, kept};
    }
    View columns_from(int column) const { return {data + (kept ? column / 2 : column), stride, index, kept}; }
};
struct MutableView {
    float* data;
    std::ptrdiff_t stride;
    const int* index = nullptr;
    float* row(int i) const { return data + stride * (index ? index[i] : i); }
    MutableView from(int row) const {
        return index ? MutableView{data, stride, index + row} : MutableView{data + stride * row, stride, nullptr};
    }
    MutableView columns_from(int column) const { return {data + column, stride, index}; }
    operator View() const { return {data, stride, index}; }
};

// out[r][c] = sum over i < k of left[r][i * step] * right[i * tile_columns + c], in order of i; added to what is there
// if `adds`. Factors that are packed are laid out as the products' own functions do it.
struct ProductTile {
    View left;
    std::ptrdiff_t step;
    const float* right;
    int k, num_rows, num_columns;
    bool adds;
    MutableView out;
};

// FloatProducts of float matrices in one precision of the factors; sums are floats. A packed number, or two of 16 bits
// side by side, is a cell of four bytes. Packed inputs are padded by zeros to whole steps.
struct FloatProducts {
    int tile_rows, tile_columns;  // of a tile at most
    int row_step;                 // rows up to the next multiple of it cost nothing more
    int input_step, cell_inputs;
    std::ptrdiff_t cells(std::ptrdiff_t inputs) const {
        return (inputs + input_step - 1) / input_step * input_step / cell_inputs;
    }

    void (*multiply)(const ProductTile* tiles, int count);
    // Right factors, a panel of tile_columns: columns [column, column + count) of k rows; or `count` rows, each of
    // which is a column of the panel.
    void (*pack_columns)(View rows, int k, int column, int count, float* panel);
    void (*pack_rows)(View rows, int count, int k, float* panel);
    // Left factors, a tile's: columns [column, column + count) of k rows; or inputs [begin, begin + k) of `count` rows,
    // which is null where rows are multiplied as they are.
    void (*pack_left_columns)(View rows, int k, int column, int count, float* tile);
    void (*pack_left_rows)(View rows, int count, int begin, int k, float* tile);
    std::ptrdiff_t left_step;  // of a packed left factor

    // Converts a row of n numbers to cells of two bfloat16 numbers, and back. Null if a cell is one float.
    void (*keep)(const float* row, int n, float* cells);
    void (*load)(const float* cells, int n, float* row);
};
enum class Precision : int { Float32, Bfloat16 };
constexpr int kNumPrecisions = 2;

// A weight in training with its optimizer state. An update is weight = keep * weight - rate * direction.
struct Updated {
    float *weight, *gradient, *momentum, *square;
    std::ptrdiff_t size;
    float keep, rate;
};
struct AdamStep {
    float beta1, beta2, bias2, eps, shrink;  // shrink: factor of the gradients, applied first
};

// Angles of rotary embedding. A rotated pair is two neighbours, or one number from each half.
struct Angles {
    const float *cos, *sin;
    int pairs;
    bool neighbours;
};

struct TrainKernels {
    // out = share * silu(gate) * up.
    void (*weighted_swiglu)(const float* gate, const float* up, float share, int n, float* out);
    // From d, the gradient of silu(gate) * up before its share: the gradients of gate and up, and `mixed`, which is
    // what weighted_swiglu() makes. Returns the gradient of the share. d_gate and d_up may be gate and up, `mixed` may
    // be d.
    float (*weighted_swiglu_gradient)(const float* gate, const float* up, const float* d, float share, int n,
                                      float* d_gate, float* d_up, float* mixed);
    // x -> share * softmax(scale * x), of n numbers; zeros after them, up to `width`. Returns log(sum(exp(scale * x))).
    // There is to be room for whole vectors of 16, here and below; scale is positive.
    float (*softmax)(float* x, int n, int width, float scale, float share);
    // From `scores` and the gradient d of their softmax (its inner product with the softmax is `dot`): the softmax, in
    // `scores`, and the gradient of scores, in d; zeros as above.
    void (*softmax_gradient)(float* scores, float* d, int n, int width, float scale, float log_sum, float dot);
    float (*dot)(const float* x, const float* y, int n);
    // y = [plain | last, whose pairs are turned].
    void (*concat_rope)(const float* plain, int num_plain, const float* last, const Angles& by, float* y);
    // The inverse of concat_rope for gradients: rotates back and splits.
    void (*split_rope)(const float* y, int num_plain, const Angles& by, float* plain, float* last);
    void (*rms_norm)(const float* x, const float* weight, int n, float eps, float* y);
    // From d, the gradient of y: writes d_x and adds to d_weight.
    void (*rms_norm_gradient)(const float* x, const float* weight, const float* d, int n, float eps, float* d_x,
                              float* d_weight);

    // Of n numbers from `begin` on: Adam's update, whose first moment is not corrected but by the rate.
    void (*adamw)(const Updated& at, std::ptrdiff_t begin, int n, const AdamStep& step);
    // momentum = beta * momentum + shrink * gradient; gradient = shrink * gradient + beta * momentum (Nesterov).
    void (*nesterov)(const Updated& at, std::ptrdiff_t begin, int n, float beta, float shrink);
    // weight = keep * weight - rate * gradient.
    void (*apply_update)(const Updated& at, std::ptrdiff_t begin, int n);
};

}  // namespace freedive
