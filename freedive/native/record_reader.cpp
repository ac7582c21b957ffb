#include "record_reader.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <stdexcept>
#include <thread>
#include <utility>

#include "checksum.h"

namespace freedive {
namespace {

// A record is read in pieces of about this size, so that several threads can share one record.
constexpr std::size_t kPieceBytes = 2 << 20;

// How long end() waits for threads that are reading.
constexpr std::chrono::seconds kPatience(1);

const std::string kUnreadable = "the weights of an expert cannot be read: ";

std::string system_error(int code) { return std::strerror(code); }

// Opens a file for reading, past the page cache if `direct`; returns -1 with errno if that fails.
int open_file(const std::string& path, bool direct) {
#ifdef O_DIRECT
    return open(path.c_str(), O_RDONLY | O_CLOEXEC | (direct ? O_DIRECT : 0));
#else
    const int file = open(path.c_str(), O_RDONLY | O_CLOEXEC);
#ifdef F_NOCACHE
    if (file >= 0 && direct) fcntl(file, F_NOCACHE, 1);
#endif
    return file;
#endif
}

// The checksum of a record, as the store has it.
std::uint64_t record_checksum(const ExpertLayer& layer, const std::uint8_t* record) {
    std::vector<std::uint64_t> parts;
    for (const Extent& part : layer.parts) parts.push_back(checksum({record + part.offset, part.size}));
    if (parts.size() == 1) return parts[0];
    return checksum({(const std::uint8_t*)parts.data(), parts.size() * sizeof(std::uint64_t)});
}

}  // namespace

RecordReader::RecordReader(const std::string& path, bool direct, int num_threads, double timeout_s)
    : direct_(direct), file_(open_file(path, direct)), num_threads_(num_threads), timeout_s_(timeout_s) {
    if (file_ < 0 && direct && errno == EINVAL)  // this file system has only buffered reads
        direct_ = false, file_ = open_file(path, false);
    if (file_ < 0) throw std::runtime_error("the weights cannot be opened: " + system_error(errno));
    stamp_ = stamp();
}

RecordReader::~RecordReader() { close(file_); }

void RecordReader::start(const std::shared_ptr<void>& owner) {
    for (int i = 0; i < num_threads_; i++) {
        const std::lock_guard lock(mutex_);
        std::thread([this, owner] { work(); }).detach();
        num_running_++;
    }
}

void RecordReader::end() {
    std::unique_lock lock(mutex_);
    ending_ = true;
    pieces_.clear();
    has_work_.notify_all();
    has_finished_.wait_for(lock, kPatience, [this] { return num_running_ == 0; });
}

void RecordReader::read(FileLayer& from, int index, std::uint8_t* memory, RecordSlot& slot) {
    const ExpertLayer& layer = from.layer;
    const std::size_t count = (layer.stride + kPieceBytes - 1) / kPieceBytes;
    const std::size_t size = (layer.stride / count + kDiskBlock - 1) / kDiskBlock * kDiskBlock;
    slot.pieces_ = int((layer.stride + size - 1) / size);
    slot.state_.store(RecordSlot::Loading, std::memory_order_release);
    const std::lock_guard lock(mutex_);
    slot.error_.clear();
    for (std::size_t begin = 0; begin < layer.stride; begin += size) {
        pieces_.push_back({&from, index, memory, {begin, std::min(size, layer.stride - begin)}, &slot});
        has_work_.notify_one();
    }
}

bool RecordReader::wait(const RecordSlot& slot) {
    std::unique_lock lock(mutex_);
    const std::chrono::duration<double> timeout(timeout_s_);
    const auto is_over = [&] { return !slot.is_loading() || hangs_; };
    // A slow disk may need long for all records before this one. It hangs if it reads nothing for so long.
    for (std::int64_t before = -1; !is_over() && before != num_read_;) {
        before = num_read_;
        has_finished_.wait_for(lock, timeout, is_over);
    }
    if (slot.is_ready()) return true;
    const bool late = slot.is_loading();
    if (error_.empty())
        error_ = kUnreadable +
                 (late ? "the disk did not answer for " + std::to_string(int(timeout_s_)) + " s" : slot.error_);
    if (late) {
        hangs_ = true;
        has_finished_.notify_all();
    }
    return false;
}

std::string RecordReader::take_error() {
    const std::lock_guard lock(mutex_);
    hangs_ = false;
    return std::exchange(error_, {});
}

void RecordReader::when_idle(std::function<bool()> begin_reading) {
    {
        const std::lock_guard lock(mutex_);
        begin_reading_ = std::move(begin_reading);
    }
    has_work_.notify_all();
}

void RecordReader::work() {
    while (const std::optional<Piece> piece = next()) {
        read(*piece);
        if (piece->slot->pieces_.fetch_sub(1, std::memory_order_acq_rel) == 1) finish(*piece);
        const std::lock_guard lock(mutex_);
        num_read_++;
    }
    const std::lock_guard lock(mutex_);
    num_running_--;
    has_finished_.notify_all();
}

// Waits for a piece to read; returns none at the end.
std::optional<RecordReader::Piece> RecordReader::next() {
    std::unique_lock lock(mutex_);
    for (;;) {
        has_work_.wait(lock, [this] { return ending_ || !pieces_.empty() || begin_reading_; });
        if (ending_) return std::nullopt;
        if (!pieces_.empty()) break;
        const std::function<bool()> begin_reading = begin_reading_;
        lock.unlock();  // it calls read()
        const bool goes_on = begin_reading();
        lock.lock();
        if (!goes_on) begin_reading_ = nullptr;
    }
    const Piece piece = pieces_.front();
    pieces_.pop_front();
    return piece;
}

void RecordReader::read(const Piece& piece) {
    std::uint8_t* to = piece.memory + piece.extent.offset;
    const ExpertLayer& layer = piece.from->layer;
    std::uint64_t at = layer.offset + layer.stride * piece.index + piece.extent.offset;
    for (std::size_t left = piece.extent.size; left;) {
        const ssize_t count = pread(file_, to, left, off_t(at));
        if (count < 0 && errno == EINTR) continue;
        if (count <= 0) return fail(piece, count ? system_error(errno) : "the file ends before it");
        to += count, at += count, left -= count;
    }
#ifdef POSIX_FADV_DONTNEED
    // The record is in memory once; a second copy in the page cache would take memory from other records.
    if (!direct_) posix_fadvise(file_, off_t(at - piece.extent.size), off_t(piece.extent.size), POSIX_FADV_DONTNEED);
#endif
}

void RecordReader::finish(const Piece& piece) {
    if (!is_sound(piece)) fail(piece, "it differs from its checksum, so the file is damaged or was changed");
    {
        const std::lock_guard lock(mutex_);
        const bool failed = !piece.slot->error_.empty();
        piece.slot->state_.store(failed ? RecordSlot::Failed : RecordSlot::Ready, std::memory_order_release);
    }
    has_finished_.notify_all();
}

bool RecordReader::is_sound(const Piece& piece) {
    const FileStamp now = stamp();
    std::unique_lock lock(mutex_);
    if (now != stamp_) stamp_ = now, num_states_++;
    const int state = num_states_;
    int& verified = piece.from->verified[piece.index];
    if (verified == state) return true;
    lock.unlock();
    const ExpertLayer& layer = piece.from->layer;
    if (record_checksum(layer, piece.memory) != layer.checksums[piece.index]) return false;
    lock.lock();
    verified = state;
    return true;
}

FileStamp RecordReader::stamp() const {
    struct stat found{};
    if (fstat(file_, &found)) return {-1, 0};
#ifdef __APPLE__
    const timespec changed = found.st_ctimespec;
#else
    const timespec changed = found.st_ctim;
#endif
    return {std::int64_t(found.st_size), std::int64_t(changed.tv_sec) * 1'000'000'000 + changed.tv_nsec};
}

void RecordReader::fail(const Piece& piece, const std::string& why) {
    const std::lock_guard lock(mutex_);
    if (piece.slot->error_.empty()) piece.slot->error_ = why;
}

}  // namespace freedive
