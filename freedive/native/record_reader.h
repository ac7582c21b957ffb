// Threads that read records of a file into memory and verify their checksums.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "expert_source.h"

namespace freedive {

constexpr std::size_t kDiskBlock = 4096;  // alignment of what is read past the page cache

// The records of a layer in the file. A record is verified when it is read first, and again after the file has changed.
struct FileLayer {
    ExpertLayer layer;
    std::vector<int> verified;  // of each record: the last state of the file in which it was; guarded by the reader
};

// What changes when a file is written: its size and the time of the last change (ctime, which no program sets), in ns.
struct FileStamp {
    std::int64_t size, changed_ns;
    bool operator==(const FileStamp&) const = default;
};

// Memory for one record, and how far it is read.
class RecordSlot {
  public:
    bool is_ready() const { return state_.load(std::memory_order_acquire) == Ready; }
    bool is_loading() const { return state_.load(std::memory_order_acquire) == Loading; }
    bool has_failed() const { return state_.load(std::memory_order_acquire) == Failed; }

  private:
    friend class RecordReader;
    enum State : int { Empty, Loading, Ready, Failed };
    std::atomic<State> state_{Empty};
    std::atomic<int> pieces_{0};  // not yet read
    std::string error_;           // why it failed; guarded by the reader's mutex
};

class RecordReader {
  public:
    // Opens the file; with `direct`, reads go past the page cache. Throws std::runtime_error if that is not possible.
    RecordReader(const std::string& path, bool direct, int num_threads, double timeout_s);
    ~RecordReader();
    RecordReader(const RecordReader&) = delete;

    // Starts the threads. `owner` is what the reader and its slots belong to; each thread keeps it alive.
    void start(const std::shared_ptr<void>& owner);
    // Ends the threads. A thread whose read hangs cannot be ended; it is left behind and ends when the read does.
    void end();

    // Begins to read record `index` of `layer` to `memory`. `slot` is loading until it is ready or has failed.
    void read(FileLayer& from, int index, std::uint8_t* memory, RecordSlot& slot);
    // Waits until `slot` is ready and returns true; or returns false, if it has failed or nothing at all was read
    // during the timeout. After a timeout it waits no more until the error is taken.
    bool wait(const RecordSlot& slot);
    // Calls `begin_reading` whenever no record is to be read, until it returns false.
    void when_idle(std::function<bool()> begin_reading);
    // Returns the first error of a wait since the last call, or an empty string.
    std::string take_error();

  private:
    struct Piece {
        FileLayer* from;
        int index;
        std::uint8_t* memory;
        Extent extent;  // of the record
        RecordSlot* slot;
    };
    void work();
    std::optional<Piece> next();
    void read(const Piece& piece);
    void finish(const Piece& piece);
    void fail(const Piece& piece, const std::string& why);
    bool is_sound(const Piece& piece);
    FileStamp stamp() const;

    bool direct_;
    int file_;
    const int num_threads_;
    const double timeout_s_;
    std::mutex mutex_;
    std::condition_variable has_work_, has_finished_;
    std::deque<Piece> pieces_;
    std::function<bool()> begin_reading_;
    bool ending_ = false, hangs_ = false;
    std::string error_;
    FileStamp stamp_;
    int num_states_ = 1;         // of the file so far: each has another stamp
    int num_running_ = 0;        // threads
    std::int64_t num_read_ = 0;  // pieces
};

}  // namespace freedive
