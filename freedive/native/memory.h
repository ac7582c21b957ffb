// Page-aligned zeroed memory that takes physical space only where it is touched.
#pragma once

#include <cstddef>

namespace freedive {

class Memory {
  public:
    Memory() = default;
    explicit Memory(std::size_t bytes);  // throws std::bad_alloc
    ~Memory();
    Memory(Memory&& other) noexcept { swap(other); }
    Memory& operator=(Memory&& other) noexcept {
        swap(other);
        return *this;
    }
    template <class T>
    T* as() const {
        return static_cast<T*>(data_);
    }

  private:
    void swap(Memory& other) {
        void* d = data_;
        data_ = other.data_;
        other.data_ = d;
        const std::size_t b = bytes_;
        bytes_ = other.bytes_;
        other.bytes_ = b;
    }
    void* data_ = nullptr;
    std::size_t bytes_ = 0;
};

// How many bytes of [data, data + bytes) are in physical memory; what the system does not tell counts as not there.
std::size_t resident_bytes(const void* data, std::size_t bytes);

// What the process frees from now on it keeps, where the system's library can do so; so many bytes come in large pages.
// Who makes the same again and again spends a sixth of the time on fresh pages otherwise.
void keep_freed_memory(std::size_t bytes);

}  // namespace freedive
