// Launchers by the first tensor of a call.

#pragma once

#include <map>
#include <tuple>
#include <utility>
#include <vector>

#include "launcher.h"

namespace ksearch {

class Table {
 public:
  Table() = default;
  Table(const Table&) = delete;
  Table(Table&&) = default;
  ~Table() {
    for (auto& [key, launcher] : launchers_) Py_DECREF(launcher);
  }

  // What is launched on tensors of which the first one is of this shape, dtype and device; null where nothing is.
  Launcher* find(const at::Tensor& first) const {
    const auto found = launchers_.find(view(first));
    return found == launchers_.end() ? nullptr : reinterpret_cast<Launcher*>(found->second);
  }

  void add(const at::Tensor& first, PyObject* launcher) {
    Py_INCREF(launcher);
    const auto [place, is_new] = launchers_.emplace(Key(first.sizes().vec(), look(first)), launcher);
    if (!is_new) Py_DECREF(std::exchange(place->second, launcher));
  }

 private:
  using Look = std::tuple<at::ScalarType, c10::DeviceType, c10::DeviceIndex>;
  using Key = std::pair<std::vector<int64_t>, Look>;
  using View = std::pair<at::IntArrayRef, Look>;

  struct Less { // of keys and views of keys: nothing is allocated to find one
    using is_transparent = void;
    template <class One, class Other>
    bool operator()(const One& one, const Other& other) const {
      const at::IntArrayRef mine = one.first, theirs = other.first;
      if (one.second != other.second) return one.second < other.second;
      return std::lexicographical_compare(mine.begin(), mine.end(), theirs.begin(), theirs.end());
    }
  };

  static Look look(const at::Tensor& tensor) {
    return {tensor.scalar_type(), tensor.device().type(), tensor.device().index()};
  }
  static View view(const at::Tensor& tensor) { return {tensor.sizes(), look(tensor)}; }

  std::map<Key, PyObject*, Less> launchers_;
};

// Whether there is such a thing as its shape and its place in memory.
inline bool is_plain(const at::Tensor& tensor) {
  return tensor.layout() == at::kStrided && !tensor.is_nested();
}

inline bool may_be_cast(const at::Tensor& tensor) {
  const auto modes = c10::impl::tls_local_dispatch_key_set();
  return ((tensor.key_set() | modes.included_) - modes.excluded_).has_any(c10::autocast_dispatch_keyset);
}

} // namespace ksearch
