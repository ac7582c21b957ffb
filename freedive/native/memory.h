// Page-aligned memory, initially zero. The operating system provides physical memory only for pages that are touched.
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
    explicit operator bool() const { return data_; }
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

// Returns how many bytes of [data, data + bytes) are in physical memory, or 0 where the system does not report it.
std::size_t resident_bytes(const void* data, std::size_t bytes);

// Tells the system that mapped bytes will be read soon: it begins to read those that are on disk, all together. Page
// faults would read them one by one.
void expect_reads(const void* data, std::size_t bytes);

// Makes the allocator keep freed memory for reuse, where the C library supports it, and asks for large pages for the
// first `bytes`. Training frees and allocates the same sizes in every step; fresh pages would take a sixth of its time.
void keep_freed_memory(std::size_t bytes);

}  // namespace freedive
