// What training needs of an instruction-set level: products of float matrices, and arithmetic on rows. Widths are any.
#pragma once

#include <cstddef>

namespace freedive {

// A row-major matrix, or those of its rows that `index` names.
struct View {
    const float* data;
    std::ptrdiff_t stride;  // from row to row, in numbers
    const int* index = nullptr;
    const float* row(int i) const { return data + stride * (index ? index[i] : i); }
    View from(int row) const {
        return index ? View{data, stride, index + row} : View{data + stride * row, stride, nullptr};
    }
    View columns_from(int column) const { return {data + column, stride, index}; }
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
// if `adds`.
constexpr int kLeftRows = 6;
struct FloatTile {
    const float* left[kLeftRows];
    std::ptrdiff_t step;
    const float* right;
    int k, num_rows, num_columns;
    bool adds;
    float* out[kLeftRows];
};

struct TrainKernels {
    int tile_columns;  // of a panel: the right factor of tiles
    void (*multiply)(const FloatTile& tile);
    // A panel of columns [column, column + count) of k rows; or of `count` rows, each a column of the panel.
    void (*pack_columns)(View rows, int k, int column, int count, float* panel);
    void (*pack_rows)(View rows, int count, int k, float* panel);
    // out[i * kLeftRows + r] = rows[i][column + r], r < count: a left factor with step kLeftRows.
    void (*pack_left)(View rows, int k, int column, int count, float* out);

    // out = share * silu(gate) * up.
    void (*mix)(const float* gate, const float* up, float share, int n, float* out);
    // From d, the gradient of silu(gate) * up before its share: the gradients of gate and up, and `mixed`, which is
    // what mix() makes. Returns the gradient of the share. d_gate and d_up may be gate and up, `mixed` may be d.
    float (*mix_gradient)(const float* gate, const float* up, const float* d, float share, int n, float* d_gate,
                          float* d_up, float* mixed);
    // x -> share * softmax(scale * x), of n numbers; zeros after them, up to `width`. Returns log(sum(exp(scale * x))).
    // There is to be room for whole vectors of 16, here and below; scale is positive.
    float (*softmax)(float* x, int n, int width, float scale, float share);
    // From `scores` and the gradient d of their softmax (its inner product with the softmax is `dot`): the softmax, in
    // `scores`, and the gradient of scores, in d; zeros as above.
    void (*softmax_gradient)(float* scores, float* d, int n, int width, float scale, float log_sum, float dot);
    float (*dot)(const float* x, const float* y, int n);
    void (*rms_norm)(const float* x, const float* weight, int n, float eps, float* y);
    // From d, the gradient of y; d_weight is added to.
    void (*rms_norm_gradient)(const float* x, const float* weight, const float* d, int n, float eps, float* d_x,
                              float* d_weight);
};

}  // namespace freedive
