// virtio-gpu's state for snapshots. What the guest's commands have made is made again by the same
// functions, so that a file can ask for nothing that a guest can't. Frontends are no part of it:
// they connect to the new process and are told everything.
#include "devices/virtio/gpu/gpu_work.h"

namespace lethe {
namespace {

// Of a file: whoever counts on from there never comes to the end.
constexpr uint64_t kSerialsMax = UINT64_MAX / 2;

}  // namespace

// --- polls

// The queue stops; frozen, the polls' chains come back with the next one, and are no new commands
// then: what they asked for was done.
void GpuWork::keep_polls() {
  x_kept_polls.clear();
  for (auto& [id, context] : x_contexts) {
    if (!context.poll) continue;
    if (x_frozen) x_kept_polls[context.poll->chain.head()] = {context.serial, context.poll->answer};
    context.poll.reset();
  }
}

// Whether the chain is a poll from before.
bool GpuWork::poll_goes_on(Chain& chain) {
  const auto found = x_kept_polls.find(chain.head());
  if (found == x_kept_polls.end()) return false;
  const KeptPoll kept = found->second;
  x_kept_polls.erase(found);
  Context* const context = find_serial(kept.context);
  if (context != nullptr && context->windows) {
    hold_poll(*context, std::move(chain), kept.answer);
    return true;
  }
  // SAFETY: the bytes of a trivially copyable structure.
  const std::span<const uint8_t> bytes{reinterpret_cast<const uint8_t*>(&kept.answer),
                                       sizeof kept.answer};
  chain.complete(static_cast<uint32_t>(chain.copy_to_writable(0, bytes)));
  return true;
}

void GpuWork::save_polls(StateWriter& to) const {
  to.number(static_cast<uint16_t>(x_kept_polls.size()));
  for (const auto& [head, poll] : x_kept_polls) {
    to.number(head);
    to.number(poll.context);
    to.number(poll.answer.type);
    to.number(poll.answer.flags);
    to.number(poll.answer.fence_id);
    to.number(poll.answer.ctx_id);
    to.number(poll.answer.ring_idx);
  }
}

void GpuWork::restore_polls(StateReader& from) {
  const auto count = from.number<uint16_t>();
  for (uint16_t i = 0; i < count && from.ok(); ++i) {
    KeptPoll& poll = x_kept_polls[from.number<uint16_t>()];
    poll.context = from.number<uint64_t>();
    poll.answer.type = from.number<uint32_t>();
    poll.answer.flags = from.number<uint32_t>();
    poll.answer.fence_id = from.number<uint64_t>();
    poll.answer.ctx_id = from.number<uint32_t>();
    poll.answer.ring_idx = from.number<uint8_t>();
  }
}

// --- everything

void GpuWork::save_contexts(StateWriter& to) const {
  to.number(x_serials);
  to.number(static_cast<uint32_t>(x_contexts.size()));
  for (const auto& [id, context] : x_contexts) {
    to.number(id);
    to.number(context.serial);
    to.boolean(context.windows != nullptr);
  }
}

std::set<uint64_t> GpuWork::restore_contexts(StateReader& from) {
  std::set<uint64_t> serials;
  x_serials = from.number<uint64_t>();
  const auto count = from.number<uint32_t>();
  if (count > kContextsMax) from.fail("more contexts than there can be");
  if (x_serials > kSerialsMax) from.fail("contexts are numbered beyond all that was ever made");
  for (uint32_t i = 0; i < count && from.ok(); ++i) {
    const auto id = from.number<uint32_t>();
    const auto serial = from.number<uint64_t>();
    const bool windows = from.boolean();
    if (id == 0 || serial == 0 || serial > x_serials || find_context(id) != nullptr ||
        !serials.insert(serial).second) {
      from.fail("a context can't be made");
      break;
    }
    make_context(id, serial, windows);
  }
  return serials;
}

void GpuWork::save(StateWriter& to) const {
  to.number(x_shared.events.load());
  to.boolean(x_sizes != x_sizes_told);
  save_contexts(to);
  x_resources.save(x_memory, to);
  x_screens.save(to);
  for (const auto& [id, context] : x_contexts) {
    if (!context.windows) continue;
    to.number(id);
    context.windows->save(to);
  }
  to.number(uint32_t{0});
  save_polls(to);
  x_resources.save_content(to);
}

void GpuWork::restore(StateReader& from) {
  x_shared.events.store(from.number<uint32_t>() & VIRTIO_GPU_EVENT_DISPLAY);
  if (from.boolean()) ++x_sizes;
  const std::set<uint64_t> serials = restore_contexts(from);
  if (from.ok()) x_resources.restore(x_memory, serials, from);
  if (from.ok()) x_screens.restore(from);
  while (from.ok()) {
    const auto id = from.number<uint32_t>();
    if (id == 0) break;
    Context* const context = find_context(id);
    if (context == nullptr || !context->windows || context->windows->windows() > 0)
      return from.fail("windows of a context that is not there");
    context->windows->restore(from);
  }
  restore_polls(from);
  if (from.ok()) x_resources.restore_content(from);
  count_now();
}

}  // namespace lethe
