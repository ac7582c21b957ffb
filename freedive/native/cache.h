// The key-value cache, in pages of 32 tokens.
#pragma once

#include <vector>

#include "checks.h"
#include "isa/kernels.h"
#include "memory.h"

namespace freedive {

// Attention computes 32 columns at once at every level.
constexpr int whole_columns(int n) { return (n + 31) / 32 * 32; }

constexpr int number_bytes(CacheFormat format) { return format == CacheFormat::F32 ? 4 : 2; }  // f32 or f16 only

// The layout of one layer's keys and values inside a page.
struct CacheLayer {
    int num_heads, key_dim, value_dim;
    std::size_t offset;  // bytes from the start of a page
    int value_stride() const { return whole_columns(value_dim); }
};

// A page holds the keys and values of every layer, head by head, in the layout of CacheFormat (isa/kernels.h).
class Cache {
  public:
    explicit Cache(CacheFormat format) : format_(format) {}
    int add_layer(int num_heads, int key_dim, int value_dim);
    void allocate(int num_pages) { memory_ = Memory(page_bytes_ * num_pages), num_pages_ = num_pages; }
    int num_pages() const { return num_pages_; }
    std::uint8_t* pages() const { return memory_.as<std::uint8_t>(); }
    CacheFormat format() const { return format_; }
    const CacheLayer& layer(int index) const { return layers_[index]; }
    const CacheLayer& checked_layer(int index) const { return layers_[index_below(index, layers_.size(), "layer")]; }
    std::size_t page_bytes() const { return page_bytes_; }
    std::uint8_t* keys(int page, int layer, int head) const;
    std::uint8_t* values(int page, int layer, int head) const;
    // Writes the key and value of one head for the token at position `slot` of a page.
    void store(const Kernels& kernels, int page, int slot, int layer, int head, const float* key,
               const float* value) const;

  private:
    std::size_t key_bytes(const CacheLayer& layer) const;
    std::size_t head_bytes(const CacheLayer& layer) const;

    CacheFormat format_;
    std::vector<CacheLayer> layers_;
    std::size_t page_bytes_ = 0;
    int num_pages_ = 0;
    Memory memory_;
};

}  // namespace freedive
