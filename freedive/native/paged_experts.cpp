#include "paged_experts.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <utility>

#include "checks.h"

namespace freedive {
namespace {

// The most experts of a wave in which some are missing. The records of the next wave are read meanwhile.
constexpr int kWave = 16;

// Steps after which a use counts half as much. Measured on recorded and on synthetic routes: see docs/log/memory.md.
constexpr double kHalfLife = 8;

constexpr double kPinned = std::numeric_limits<double>::infinity();
constexpr double kUnused = -kPinned;  // the rank of a slot without a sound record
constexpr double kNever = -1e9;       // the use of an expert that was never used
constexpr double kPassed = 1e10;      // by which a record that a scan has read ranks below all others

}  // namespace

PagedExperts::PagedExperts(const PagingOptions& options, int team_size)
    : options_(options),
      team_size_(team_size),
      reader_(options.path, options.direct, options.num_readers, options.timeout_s) {}

int PagedExperts::add_layer(const ExpertLayer& layer) {
    require(layer.stride % kDiskBlock == 0 && layer.offset % kDiskBlock == 0, "records are not aligned on disk");
    require(layer.checksums.size() == std::size_t(layer.count), "records lack checksums");
    for (const Extent& part : layer.parts)
        require(part.offset <= layer.stride && part.size <= layer.stride - part.offset, "a part is not in its record");
    auto found = std::find_if(pools_.begin(), pools_.end(), [&](auto& pool) { return pool->stride == layer.stride; });
    if (found == pools_.end()) found = pools_.insert(found, std::make_unique<Pool>());
    Pool& pool = **found;
    pool.stride = layer.stride;
    pool.total += layer.stride * layer.count, pool.num_layers++;
    layers_.push_back({{layer, std::vector<int>(layer.count)},
                       &pool,
                       std::vector<int>(layer.count, kNowhere),
                       order_of(layers_.size(), layer.count),
                       std::vector<double>(layer.count)});
    Layer& added = layers_.back();
    for (int place = 0; place < layer.count; place++) added.uses[added.order[place]] = kNever - place;
    added.records.layer.packed = {};
    return int(layers_.size()) - 1;
}

std::vector<int> PagedExperts::order_of(std::size_t layer, int count) const {
    std::vector<int> order(count);
    std::iota(order.begin(), order.end(), 0);
    if (layer >= options_.order.size()) return order;
    const std::vector<int>& given = options_.order[layer];
    return std::is_permutation(given.begin(), given.end(), order.begin(), order.end()) ? given : order;
}

// Each pool gets memory for two records, and beyond that for the same share of its records.
void PagedExperts::allocate() {
    const auto beyond = [](std::size_t bytes, std::size_t least) { return bytes > least ? bytes - least : 0; };
    std::size_t total = 0, least = 0, widest = 0;
    for (const auto& pool : pools_) {
        total += beyond(pool->total, 2 * pool->stride), least += 2 * pool->stride;
        widest = std::max(widest, pool->stride);
    }
    const double share = total ? std::min(1.0, double(beyond(options_.num_bytes, least)) / double(total)) : 0;
    for (const auto& pool : pools_) {
        const std::size_t further = beyond(pool->total, 2 * pool->stride);
        const std::size_t count = 2 + std::size_t(share * double(further)) / pool->stride;
        pool->memory = Memory(count * pool->stride);
        pool->slots = std::vector<Slot>(count);
        pool->ranks.assign(count, kUnused);
    }
    zeros_ = Memory(widest);
    reader_.when_idle([this] { return warm_up(); });
    reader_.start(shared_from_this());
}

std::span<const std::uint8_t> PagedExperts::cached(int layer) {
    const std::lock_guard lock(mutex_);
    if (num_looks_ == 0) {
        const Layer& from = layers_[layer];
        cached_.clear();
        for (const int slot : from.slots) cached_.push_back(slot != kNowhere && !from.pool->slots[slot].has_failed());
    }
    num_looks_ = (num_looks_ + 1) % team_size_;
    return cached_;
}

Wave PagedExperts::acquire(int layer, std::span<const int> experts, int begin) {
    const std::lock_guard lock(mutex_);
    if (num_calls_ == 0) plan(layers_[layer], experts, begin);
    num_calls_ = (num_calls_ + 1) % team_size_;
    return {end_, order_};
}

// Gives slots to the experts of the wave and of the next one, and begins to read what is missing.
void PagedExperts::plan(Layer& layer, std::span<const int> experts, int begin) {
    Pool& pool = *layer.pool;
    const int count = int(experts.size());
    // A layer that reads more than its share of the slots would replace all that the next layers need.
    const bool scans = std::size_t(count) * pool.num_layers > pool.slots.size();
    if (begin == 0) {
        if (&layer == &layers_.front()) {  // a step begins
            now_ += 1 / kHalfLife;
            for (Layer& each : layers_) each.missed.clear();
        }
        unpin_all(layer);
        pin_hits(layer, experts, scans);
    } else {
        for (int i = begin_; i < begin; i++)
            if (const int slot = layer.slots[experts[i]]; slot != kNowhere) unpin(pool, slot);
    }
    int pinned = begin;
    bool complete = true;  // whether all can be read now
    for (; pinned < count && (complete || pinned < begin + 2 * kWave); pinned++) {
        if (!pin(layer, experts[pinned], scans)) break;
        complete &= pool.slots[layer.slots[experts[pinned]]].is_ready();
    }
    begin_ = begin;
    lacks_slots_ |= pinned == begin;  // then the wave is one expert without a record, and check() throws
    end_ = complete && pinned == count ? count : std::max(begin + 1, std::min(begin + kWave, pinned));
    order_wave(layer, experts.subspan(begin, end_ - begin));
    // A step that reads nearly all experts of this layer will do so in the next one.
    const bool is_last = &layer == &layers_.back();
    if (scans && !is_last && end_ == count && 8 * count >= 7 * int(layer.slots.size())) read_ahead(*(&layer + 1));
}

// Begins to read the first experts of a layer that are missing.
void PagedExperts::read_ahead(Layer& layer) {
    const int left = int(layer.pool->slots.size() / 2);
    int missing = kWave;
    for (int expert = 0; expert < int(layer.slots.size()) && missing && layer.pool->num_unpinned() > left; expert++)
        if (layer.slots[expert] == kNowhere && pin(layer, expert, true)) {
            layer.pool->slots[layer.slots[expert]].ahead = true;
            missing--;
        }
}

// Pins those experts of a layer that are in memory, before others replace them, but leaves slots to read the others.
void PagedExperts::pin_hits(Layer& layer, std::span<const int> experts, bool scans) {
    Pool& pool = *layer.pool;
    const int left = std::min(2 * kWave, int(pool.slots.size() / 2));
    for (const int expert : experts)
        if (layer.slots[expert] != kNowhere && pool.num_unpinned() > left) pin(layer, expert, scans);
}

// Gives an expert a slot, unless it has one already, and pins it. Returns false if there is no slot to replace.
bool PagedExperts::pin(Layer& layer, int expert, bool scans) {
    Pool& pool = *layer.pool;
    int& slot = layer.slots[expert];
    if (slot != kNowhere && pool.slots[slot].pinned) {
        pool.slots[slot].ahead = false;
        return true;
    }
    const bool hit = slot != kNowhere && !pool.slots[slot].has_failed();
    if (!hit) {
        const int replaced = slot != kNowhere ? slot : replaceable(pool);
        if (replaced == kNowhere) return false;
        load(layer, expert, replaced);
    }
    Slot& taken = pool.slots[slot];
    taken.passes = scans && !hit;
    taken.pinned = true;
    pool.num_pinned++, pool.pinned.push_back(slot), pool.ranks[slot] = kPinned;
    if (!scans) use(layer, expert);
    layer.traffic.hits += hit, layer.traffic.misses += !hit;
    if (!hit) layer.missed.push_back(expert);
    return true;
}

// Counts a use. Scans do not count: they use all experts, and the layers that they have passed would seem to be used
// more than those which are next.
void PagedExperts::use(Layer& layer, int expert) const {
    double& sum = layer.uses[expert];
    sum = now_ + std::log2(1 + std::exp2(sum - now_));
}

// Unpins everything but what was read ahead for a layer.
void PagedExperts::unpin_all(const Layer& except) {
    for (const auto& pool : pools_)
        std::erase_if(pool->pinned, [&](int slot) {
            const Slot& pinned = pool->slots[slot];
            if (!pinned.ahead || &layers_[pinned.layer] != &except) unpin(*pool, slot);
            return !pinned.pinned;
        });
}

// A slot that is still loading stays pinned: the disk will write to it.
void PagedExperts::unpin(Pool& pool, int slot) {
    Slot& done = pool.slots[slot];
    if (!done.pinned || done.is_loading()) return;
    done.pinned = done.ahead = false;
    pool.num_pinned--;
    const double use = layers_[done.layer].uses[done.expert];
    pool.ranks[slot] = done.has_failed() ? kUnused : done.passes ? use - kPassed : use;
}

// Returns the slot that is to be replaced next, or kNowhere.
int PagedExperts::replaceable(const Pool& pool) const {
    int found = kNowhere;
    double least = kPinned;
    for (std::size_t slot = 0; slot < pool.slots.size(); slot++)
        if (pool.ranks[slot] < least && !pool.slots[slot].is_loading()) found = int(slot), least = pool.ranks[slot];
    return found;
}

void PagedExperts::load(Layer& layer, int expert, int slot) {
    Slot& taken = layer.pool->slots[slot];
    layer.pool->num_used = std::max(layer.pool->num_used, slot + 1);
    if (taken.layer != kNowhere) layers_[taken.layer].slots[taken.expert] = kNowhere;
    taken.layer = int(&layer - layers_.data()), taken.expert = expert;
    layer.slots[expert] = slot;
    layer.traffic.bytes += std::int64_t(layer.pool->stride);
    reader_.read(layer.records, expert, layer.pool->at(slot), taken);
}

// Experts that can be read come first in the share of every thread of the team (see Team::for_each).
void PagedExperts::order_wave(const Layer& layer, std::span<const int> experts) {
    std::vector<int> sorted(experts.begin(), experts.end());
    std::stable_partition(sorted.begin(), sorted.end(), [&](int expert) {
        const int slot = layer.slots[expert];
        return slot != kNowhere && layer.pool->slots[slot].is_ready();
    });
    order_.clear();
    for (int thread = 0; thread < team_size_; thread++)
        for (std::size_t i = thread; i < sorted.size(); i += team_size_) order_.push_back(sorted[i]);
}

const std::uint8_t* PagedExperts::record(int layer, int expert) {
    Layer& from = layers_[layer];
    const int slot = from.slots[expert];
    if (slot == kNowhere) return unread(layer, expert);
    const Slot& found = from.pool->slots[slot];
    return found.is_ready() || wait(from, found) ? from.pool->at(slot) : unread(layer, expert);
}

const std::uint8_t* PagedExperts::unread(int layer, int expert) {
    const std::lock_guard lock(mutex_);
    const UnreadableWeights::Record record{layer, expert};
    if (std::find(unread_.begin(), unread_.end(), record) == unread_.end()) unread_.push_back(record);
    return zeros_.as<std::uint8_t>();
}

bool PagedExperts::wait(Layer& layer, const Slot& slot) {
    const auto begun = std::chrono::steady_clock::now();
    const bool ready = reader_.wait(slot);
    const std::chrono::duration<double> waited = std::chrono::steady_clock::now() - begun;
    const std::lock_guard lock(mutex_);
    layer.traffic.stalled_s += waited.count() / team_size_;
    return ready;
}

void PagedExperts::check() {
    std::string error = reader_.take_error();
    if (lacks_slots_ && error.empty()) error = "the weights of an expert cannot be read: the disk does not answer";
    lacks_slots_ = false;
    std::vector<UnreadableWeights::Record> records = std::exchange(unread_, {});
    if (!error.empty()) throw UnreadableWeights(error, std::move(records));
}

// Begins to read a record into a free slot; returns false at the end. The first experts of every layer's order come
// first, then the second ones, and so on.
bool PagedExperts::warm_up() {
    const std::lock_guard lock(mutex_);
    std::size_t records = 0;
    for (const Layer& layer : layers_) records = std::max(records, layer.slots.size() * layers_.size());
    for (; num_warmed_ < records; num_warmed_++) {
        Layer& layer = layers_[num_warmed_ % layers_.size()];
        Pool& pool = *layer.pool;
        const std::size_t place = num_warmed_ / layers_.size();
        if (place >= layer.order.size()) continue;
        const int expert = layer.order[place];
        if (layer.slots[expert] != kNowhere) continue;
        const int slot = pool.num_used, count = int(pool.slots.size());
        // A step that begins meanwhile needs a slot that is not loading.
        const auto serves = [](const Slot& other) { return !other.pinned && !other.is_loading(); };
        const bool leaves_one = slot + 1 < count || std::any_of(pool.slots.begin(), pool.slots.begin() + slot, serves);
        if (slot == count || !leaves_one) continue;
        load(layer, expert, slot);
        pool.ranks[slot] = layer.uses[expert];
        return true;
    }
    return false;
}

std::size_t PagedExperts::num_bytes() const {
    std::size_t bytes = 0;
    for (const auto& pool : pools_) bytes += pool->stride * pool->slots.size();
    return bytes;
}

std::size_t PagedExperts::num_used_bytes() const {
    const std::lock_guard lock(mutex_);
    std::size_t bytes = 0;
    for (const auto& pool : pools_)
        for (const Slot& slot : pool->slots) bytes += slot.is_ready() ? pool->stride : 0;
    return bytes;
}

std::vector<ExpertTraffic> PagedExperts::traffic() const {
    const std::lock_guard lock(mutex_);
    std::vector<ExpertTraffic> all;
    for (const Layer& layer : layers_) all.push_back(layer.traffic);
    return all;
}

std::vector<std::vector<int>> PagedExperts::missed() const {
    const std::lock_guard lock(mutex_);
    std::vector<std::vector<int>> all;
    for (const Layer& layer : layers_) all.push_back(layer.missed);
    return all;
}

}  // namespace freedive
