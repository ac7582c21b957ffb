#include "memory.h"

#include <sys/mman.h>
#ifdef __GLIBC__
#include <malloc.h>
#endif

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <new>
#include <vector>

namespace freedive {

Memory::Memory(std::size_t bytes) : bytes_(bytes) {
    if (!bytes) return;
    data_ = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (data_ == MAP_FAILED) {
        data_ = nullptr;
        throw std::bad_alloc();
    }
#ifdef MADV_HUGEPAGE
    madvise(data_, bytes, MADV_HUGEPAGE);
#endif
}

Memory::~Memory() {
    if (data_) munmap(data_, bytes_);
}

namespace {

constexpr std::uintptr_t kPage = 4096;

}  // namespace

std::size_t resident_bytes(const void* data, std::size_t bytes) {
    constexpr std::uintptr_t kPages = 1 << 16;
    const std::uintptr_t begin = std::uintptr_t(data), end = begin + bytes;
    std::vector<unsigned char> pages(kPages);
    std::size_t count = 0;
    for (std::uintptr_t first = begin / kPage * kPage; first < end; first += kPage * kPages) {
        const std::uintptr_t last = std::min(first + kPage * kPages, (end + kPage - 1) / kPage * kPage);
        if (mincore((void*)first, last - first, pages.data())) continue;
        for (std::uintptr_t page = first; page < last; page += kPage)
            if (pages[(page - first) / kPage] & 1) count += std::min(page + kPage, end) - std::max(page, begin);
    }
    return count;
}

void expect_reads(const void* data, std::size_t bytes) {
    constexpr std::uintptr_t kPart = 128 << 10;  // Linux follows an advice only for its usual read-ahead
    const std::uintptr_t begin = std::uintptr_t(data) / kPage * kPage, end = std::uintptr_t(data) + bytes;
    for (std::uintptr_t at = begin; at < end; at += kPart) madvise((void*)at, std::min(kPart, end - at), MADV_WILLNEED);
}

void keep_freed_memory(std::size_t bytes) {
#if defined(__GLIBC__) && defined(MADV_HUGEPAGE)
    mallopt(M_ARENA_MAX, 1), mallopt(M_MMAP_MAX, 0), mallopt(M_TRIM_THRESHOLD, -1);
    void* room = std::malloc(bytes);
    if (!room) return;
    const std::uintptr_t begin = (std::uintptr_t(room) + kPage) / kPage * kPage;
    madvise((void*)begin, (std::uintptr_t(room) + bytes - begin) / kPage * kPage, MADV_HUGEPAGE);
    std::free(room);
#else
    (void)bytes;
#endif
}

}  // namespace freedive
