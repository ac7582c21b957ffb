#include "cache.h"

#include <algorithm>
#include <bit>
#include <cmath>

namespace freedive {
namespace {

// Stores a key as a column of a page: element i at slot + i * 32.
template <class T>
void scatter(const T* from, int n, T* slot) {
    for (int i = 0; i < n; i++) slot[std::size_t(i) * kPageTokens] = from[i];
}

// Writes the scale of n numbers as a bfloat16, rounded up so that codes stay in range. Returns its inverse, by which
// numbers become codes; for numbers so small that the inverse would overflow, returns 0.
float put_scale(const float* x, int n, std::uint16_t* to) {
    float top = 0;
    for (int i = 0; i < n; i++) top = std::max(top, std::abs(x[i]));
    const bool nothing = top < 1e-30f;
    *to = nothing ? 0 : std::uint16_t((std::bit_cast<std::uint32_t>(top / kMaxHigh) + 0xffff) >> 16);
    return nothing ? 0 : 1 / std::bit_cast<float>(std::uint32_t(*to) << 16);
}

std::uint8_t code(float x, float inverse) { return std::uint8_t(CachedCodes::zero + std::lrint(x * inverse)); }

// The offset of the code of an input and a row in a group of a panel.
std::size_t place(int row, int input) {
    return (row / kTileRows * CachedCodes::tile_lines + input / 4) * kLine + row % kTileRows * 4 + input % 4;
}

void put_key(const float* key, int n, int slot, std::uint8_t* panel) {
    for (int first = 0; first < n; first += kGroup) {
        std::uint8_t* group = panel + CachedCodes::group_offset(first / kGroup);
        const int count = std::min(kGroup, n - first);
        const float inverse = put_scale(key + first, count, (std::uint16_t*)(group - kLine) + slot);
        for (int i = 0; i < kGroup; i++)
            group[place(slot, i)] = i < count ? code(key[first + i], inverse) : CachedCodes::zero;
    }
}

void put_value(const float* value, int n, int slot, std::uint8_t* values) {
    const float inverse = put_scale(value, n, (std::uint16_t*)values + slot);
    std::uint8_t* panels = values + kLine;
    for (int i = 0; i < n; i++)
        panels[i / kPanelRows * CachedCodes::group_bytes + place(i % kPanelRows, slot)] = code(value[i], inverse);
}

}  // namespace

std::size_t Cache::key_bytes(const CacheLayer& layer) const {
    if (format_ == CacheFormat::Int8) return CachedCodes::panel_bytes(whole_columns(layer.key_dim));
    return std::size_t(kPageTokens) * layer.key_dim * number_bytes(format_);
}

std::size_t Cache::head_bytes(const CacheLayer& layer) const {
    const std::size_t values = std::size_t(kPageTokens) * layer.value_stride();
    return key_bytes(layer) + (format_ == CacheFormat::Int8 ? kLine + values : values * number_bytes(format_));
}

int Cache::add_layer(int num_heads, int key_dim, int value_dim) {
    layers_.push_back({num_heads, key_dim, value_dim, page_bytes_});
    page_bytes_ += num_heads * head_bytes(layers_.back());
    return int(layers_.size()) - 1;
}

std::uint8_t* Cache::keys(int page, int layer, int head) const {
    const CacheLayer& l = layers_[layer];
    return memory_.as<std::uint8_t>() + page * page_bytes_ + l.offset + head * head_bytes(l);
}

std::uint8_t* Cache::values(int page, int layer, int head) const {
    return keys(page, layer, head) + key_bytes(layers_[layer]);
}

void Cache::store(const Kernels& kernels, int page, int slot, int layer, int head, const float* key,
                  const float* value) const {
    const CacheLayer& l = layers_[layer];
    std::uint8_t *to_keys = keys(page, layer, head), *to_values = values(page, layer, head);
    std::uint16_t halves[kMaxHeadDim];
    switch (format_) {
        case CacheFormat::F32:
            scatter(key, l.key_dim, (float*)to_keys + slot);
            std::copy_n(value, l.value_dim, (float*)to_values + slot * l.value_stride());
            break;
        case CacheFormat::F16:
            kernels.to_half(key, l.key_dim, halves);
            scatter(halves, l.key_dim, (std::uint16_t*)to_keys + slot);
            kernels.to_half(value, l.value_dim, (std::uint16_t*)to_values + slot * l.value_stride());
            break;
        case CacheFormat::Int8:
            put_key(key, l.key_dim, slot, to_keys);
            put_value(value, l.value_dim, slot, to_values);
            break;
    }
}

}  // namespace freedive
