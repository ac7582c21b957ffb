#include "memory.h"

#include <sys/mman.h>

#include <new>

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

}  // namespace freedive
