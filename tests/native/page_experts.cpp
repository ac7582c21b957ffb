// Experts on disk under random steps: every record that a thread gets has its bytes, in every size of the memory, also
// when the source ends while it still reads. Argument: a folder for a file. Prints errors and exits with 1.
#include <cstdio>
#include <fstream>
#include <random>

#include "../../freedive/native/checksum.h"
#include "../../freedive/native/paged_experts.h"
#include "../../freedive/native/threads.h"

using namespace freedive;

namespace {

constexpr int kThreads = 3;
constexpr std::size_t kStrides[] = {4096, 5 * 4096, 4096, (2 << 20) + 4096};  // the last ones are read in two pieces
constexpr int kCounts[] = {64, 3, 20, 2};

std::uint8_t byte_of(int layer, int expert) { return std::uint8_t(layer * 67 + expert * 3 + 1); }

// Writes the records of all layers and returns the layers.
std::vector<ExpertLayer> write(const std::string& path) {
    std::ofstream file(path, std::ios::binary);
    std::vector<ExpertLayer> layers;
    std::uint64_t offset = 0;
    for (int layer = 0; layer < 4; layer++) {
        ExpertLayer made{kCounts[layer], kStrides[layer], {}, offset, {{0, kStrides[layer]}}};
        for (int expert = 0; expert < made.count; expert++) {
            const std::vector<std::uint8_t> record(made.stride, byte_of(layer, expert));
            file.write((const char*)record.data(), std::streamsize(record.size()));
            made.checksums.push_back(checksum(record));
            offset += made.stride;
        }
        layers.push_back(made);
    }
    return layers;
}

// Returns whether all threads find the bytes of all `experts`.
bool step(PagedExperts& source, Team& team, int layer, std::span<const int> experts) {
    std::atomic<bool> right{true};
    team.run([&](int) {
        if (source.cached(layer).size() != std::size_t(kCounts[layer])) right = false;
        for (int begin = 0; begin < int(experts.size());) {
            const Wave wave = source.acquire(layer, experts, begin);
            team.for_each(int(wave.order.size()), 1, [&](int i) {
                const std::uint8_t* record = source.record(layer, wave.order[i]);
                const std::uint8_t byte = byte_of(layer, wave.order[i]);
                if (record[0] != byte || record[kStrides[layer] - 1] != byte) right = false;
            });
            begin = wave.end;
        }
    });
    source.check();
    return right;
}

bool random_steps(const std::string& path, const std::vector<ExpertLayer>& layers, unsigned seed) {
    std::mt19937 random(seed);
    Team team(kThreads);
    const PagingOptions options{path, random() % (6 << 20), bool(random() % 2), 1 + int(random() % 4), 30};
    const auto source = std::make_shared<PagedExperts>(options, kThreads);
    for (const ExpertLayer& layer : layers) source->add_layer(layer);
    source->allocate();
    bool right = true;
    for (int i = 0, count = int(random() % 40); i < count; i++) {
        const unsigned share = 1 + random() % 8;
        for (int layer = 0; layer < 4; layer++) {
            std::vector<int> experts;
            for (int expert = 0; expert < kCounts[layer]; expert++)
                if (random() % 8 < share) experts.push_back(expert);
            right = step(*source, team, layer, experts) && right;
        }
        source->traffic(), source->num_used_bytes();
    }
    source->end();
    return right;
}

}  // namespace

int main(int, char** arguments) {
    const std::string path = std::string(arguments[1]) + "/records";
    const auto layers = write(path);
    int faults = 0;
    for (unsigned seed = 0; seed < 40; seed++)
        if (!random_steps(path, layers, seed)) std::printf("wrong bytes with seed %u\n", seed), faults++;
    return faults ? 1 : 0;
}
