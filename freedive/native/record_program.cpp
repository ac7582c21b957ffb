// Recording of programs. Every operation is checked when it is recorded, so that running it needs no checks.
#include <algorithm>
#include <cstring>

#include "checks.h"
#include "operations.h"

namespace freedive {

const Buffer& Program::buffer(int index) const { return buffers[index_below(index, buffers.size(), "buffer")]; }

const Weight& Program::weight(int index) const { return weights[index_below(index, weights.size(), "weight")]; }

void Program::require_buffer(int index, int width) const {
    require(buffer(index).width == width, "a buffer has another width");
}

void Program::require_vector(int index, int size) const {
    const std::vector<float>& found = vectors[index_below(index, vectors.size(), "vector")];
    require(found.size() >= std::size_t(size), "a vector is too short");
}

const Routes& Program::routes_of_step(int index) const { return routes[index_below(index, routes.size(), "routes")]; }

int Program::add_weight(Format format, int rows, int k, std::span<const std::uint8_t> packed, int heads) {
    require(heads > 0 && rows % heads == 0, "heads do not divide a weight's rows");
    require(packed.size() == checked_bytes(format, rows / heads, k) * heads, "packed weight has the wrong size");
    weights.push_back({format, rows, k, packed.data()});
    return int(weights.size()) - 1;
}

int Program::add_vector(std::span<const float> values) {
    std::vector<float> padded(std::size_t(num_panels(int(values.size()))) * kPanelRows);
    std::copy(values.begin(), values.end(), padded.begin());
    vectors.push_back(std::move(padded));
    return int(vectors.size()) - 1;
}

int Program::add_buffer(int width, Rows rows) {
    require(width > 0 && width <= kMaxDim, "a buffer has an impossible width");
    buffers.push_back({width, num_panels(width) * kPanelRows, rows, Memory()});
    return int(buffers.size()) - 1;
}

int Program::add_routes(int num_chosen) {
    routes.push_back({num_chosen, Memory(), Memory()});
    return int(routes.size()) - 1;
}

namespace {

void check_optional_vector(const Program& program, int index, int size) {
    if (index != kNone) program.require_vector(index, size);
}

void check(const Program& program, const InputNorm& norm, int width) {
    check_optional_vector(program, norm.weight, width);
}

void check(const Program& program, const Linear::Output& output, int in_width) {
    const Weight& w = program.weight(output.weight);
    require(w.k == in_width, "a weight reads another width");
    check_optional_vector(program, output.bias, w.rows);
    program.require_buffer(output.out, w.rows);
}

void check(const Program& program, const Epilogue& epilogue, int width) {
    for (const int residual : epilogue.residuals) program.require_buffer(residual, width);
}

void check(const Program& program, const HeadStep& step, int dim) {
    switch (step.kind) {
        case HeadStep::Norm:
            return program.require_vector(step.operand, dim);
        case HeadStep::RopeHalves:
        case HeadStep::RopeInterleaved:
            require(step.dim <= dim && step.dim % 2 == 0, "rotations are too wide");
            return program.require_buffer(step.operand, step.dim);
        case HeadStep::ScaleByPosition:
            return;
    }
}

// A matrix of every record, without its numbers.
Matrix matrix_in_record(std::size_t stride, const Experts::Part& part) {
    const auto inside = [&](std::size_t begin, std::size_t size) {
        return begin % sizeof(float) == 0 && begin <= stride && size <= stride - begin;
    };
    require(part.offset % kLine == 0 && inside(part.offset, checked_bytes(part.format, part.rows, part.k)),
            "a part is not in its record");
    if (part.bias) require(inside(*part.bias, std::size_t(part.rows) * sizeof(float)), "a bias is not in its record");
    return {{part.format, part.rows, part.k, nullptr}, nullptr};
}

Matrix named_matrix(const Program& program, const Experts::Named& named) {
    const Weight& w = program.weight(named.weight);
    check_optional_vector(program, named.bias, w.rows);
    return {w, named.bias == kNone ? nullptr : program.vectors[named.bias].data()};
}

void check(const Experts::Expert& expert, int in_width, int out_width) {
    const Weight &gate = expert.gate.weight, &up = expert.up.weight, &down = expert.down.weight;
    require(
        gate.k == in_width && up.k == in_width && up.rows == gate.rows && down.k == gate.rows && down.rows == out_width,
        "an expert's weights do not fit each other");
}

}  // namespace

void Embed::attach(Program& program) {
    const Weight& weight = program.weight(table);
    program.require_buffer(out, weight.k);
    program.num_tokens = weight.rows;
}

void Select::attach(Program& program) { program.require_buffer(out, program.buffer(in).width); }

void RopeTable::attach(Program& program) { program.require_vector(inv_freq, program.buffer(out).width / 2); }

void Linear::attach(Program& program) {
    const int width = program.buffer(in).width;
    require(!outputs.empty(), "a linear has no weights");
    for (const Output& output : outputs) check(program, output, width);
    check(program, norm, width);
    check(program, epilogue, program.weight(outputs[0].weight).rows);
}

void GluLinear::attach(Program& program) {
    const int width = program.buffer(in).width;
    check(program, norm, width);
    check(program, gate, width);
    check(program, up, width);
}

void RowOperation::attach(Program& program) {
    const int width = program.buffer(in).width;
    program.require_buffer(out, width);
    if (kind == ScaleByPosition) program.require_vector(other, 3);
    if (kind == SigmoidGate || kind == SoftplusGate)
        require(width % program.buffer(other).width == 0, "gates do not divide a row");
    if (kind == Add) program.require_buffer(other, width);
}

void RowNorm::attach(Program& program) {
    const int width = program.buffer(in).width;
    require(part > 0 && width % part == 0, "parts do not divide a row");
    program.require_buffer(out, width);
    program.require_vector(norm.weight, part);
    check(program, epilogue, width);
}

void RowGlu::attach(Program& program) {
    const int width = program.buffer(out).width;
    program.require_buffer(gate, width);
    require(first >= 0 && first <= program.buffer(up).width - width, "columns are outside of a row");
}

void Attention::attach(Program& program) {
    require(key_dim > 0 && value_dim > 0 && key_dim <= kMaxHeadDim && value_dim <= kMaxHeadDim, "heads are too wide");
    require(num_kv_heads > 0 && num_heads > 0 && num_heads % num_kv_heads == 0, "heads do not divide");
    require(window >= 0 && chunk >= 0, "a window is negative");
    program.require_buffer(q, num_heads * key_dim);
    program.require_buffer(out, num_heads * value_dim);
    check_optional_vector(program, sinks, num_heads);
    if (source != kNone) {
        const CacheLayer& kept = program.cache.checked_layer(source);
        require(kept.num_heads == num_kv_heads && kept.key_dim == key_dim && kept.value_dim == value_dim,
                "another layer's heads do not fit");
    } else {
        program.require_buffer(k, num_kv_heads * key_dim);
        program.require_buffer(v, num_kv_heads * value_dim);
    }
    for (const HeadStep& step : q_steps) check(program, step, key_dim);
    for (const HeadStep& step : k_steps) check(program, step, key_dim);
    for (const HeadStep& step : v_steps) check(program, step, value_dim);
    layer = source == kNone ? program.cache.add_layer(num_kv_heads, key_dim, value_dim) : source;
}

void LatentAttention::attach(Program& program) {
    require(nope_dim > 0 && rope_dim > 0 && value_dim > 0 && rank > 0 && num_heads > 0 && head_dim() <= kMaxHeadDim &&
                dim() <= kMaxHeadDim && value_dim <= kMaxHeadDim,
            "heads are too wide");
    const auto fits = [&](const Weight& w, int dim) { return w.rows == num_heads * dim && w.k == rank; };
    require(fits(program.weight(k_b), nope_dim) && fits(program.weight(v_b), value_dim),
            "weights of latents do not fit");
    program.require_buffer(q, num_heads * head_dim());
    program.require_buffer(kv, dim());
    program.require_buffer(out, num_heads * value_dim);
    program.require_vector(norm.weight, rank);
    check(program, rope, rope_dim);
    layer = program.cache.add_layer(1, 0, dim());
}

void ShortConv::attach(Program& program) {
    const int dim = program.buffer(out).width;
    require(kernel > 1 && kernel <= 16, "a convolution has an impossible kernel");
    program.require_buffer(in, gated ? 3 * dim : dim);
    program.require_vector(taps, kernel * dim);
    check_optional_vector(program, bias, dim);
    state = program.states.add_layer((kernel - 1) * dim, dim);
}

void DeltaRule::attach(Program& program) {
    require(key_dim > 0 && value_dim > 0 && key_dim <= kMaxHeadDim && value_dim <= kMaxHeadDim, "heads are too wide");
    require(num_key_heads > 0 && num_value_heads > 0 && num_value_heads % num_key_heads == 0, "heads do not divide");
    const int num_decays = num_value_heads * (by_channel ? key_dim : 1);
    program.require_buffer(q, num_key_heads * key_dim);
    program.require_buffer(k, num_key_heads * key_dim);
    program.require_buffer(v, num_value_heads * value_dim);
    program.require_buffer(beta, num_value_heads);
    program.require_buffer(decay, num_decays);
    program.require_buffer(out, num_value_heads * value_dim);
    program.require_vector(rate, num_decays);
    program.require_vector(bias, num_decays);
    add_constants(program);
    state = program.states.add_layer(num_value_heads * key_dim * value_dim, input_dim(program));
}

void GatedNorm::attach(Program& program) {
    const int width = program.buffer(out).width;
    require(head_dim > 0 && width % head_dim == 0, "heads do not divide a row");
    program.require_buffer(in, width);
    program.require_buffer(gate, width);
    program.require_vector(weight, head_dim);
}

void Experts::attach(Program& program) {
    const int in_width = program.buffer(in).width, out_width = program.buffer(out).width;
    const std::size_t stride = records.layer.stride;
    require(records.layer.count >= router.num_experts && stride % kLine == 0 &&
                stride <= records.layer.packed.size() / records.layer.count,
            "packed experts have the wrong size");
    check_optional_vector(program, router.choice_bias, router.num_experts);
    check_optional_vector(program, router.expert_scale, router.num_experts);
    program.require_buffer(logits, router.num_experts);
    program.buffers[logits].exact = true;
    check(program, norm, in_width);
    check(program, epilogue, out_width);
    if (shared_gate != kNone) {
        program.require_buffer(shared_gate, 1);
        program.buffers[shared_gate].exact = true;
    }
    routed = {matrix_in_record(stride, records.gate), matrix_in_record(stride, records.up),
              matrix_in_record(stride, records.down), records.glu};
    check(routed, in_width, out_width);
    if (shared_weights) {
        shared = Expert{named_matrix(program, shared_weights->gate), named_matrix(program, shared_weights->up),
                        named_matrix(program, shared_weights->down), shared_weights->glu};
        check(*shared, in_width, out_width);
    }
    routes = program.add_routes(router.num_chosen);
    layer = program.experts->add_layer(records.layer);
    require(layer == routes, "each layer of experts has its routes");
    program.hidden_width = std::max(program.hidden_width, hidden_width());
    program.widest = std::max(program.widest, routed.gate.weight.k);
}

}  // namespace freedive
