#pragma once
// Runs with an action at a chosen point: when a line is printed, or when a file gets its final name.
#include <atomic>
#include <cstdio>
#include <functional>
#include <string>

#include "files/file_calls.h"
#include "training/trainer_runs.h"

namespace nacre::test {

/// While it lives, `then` is called after each rename to a name that ends in the given text.
class AfterRename {
 public:
  AfterRename(const std::string& name, std::function<void()> then) {
    state() = {file_calls(), name, std::move(then)};
    file_calls().rename = [](const char* from, const char* to) {
      const int result = state().real.rename(from, to);
      if (result == 0 && fs::path(to).filename() == state().name) state().then();
      return result;
    };
  }
  ~AfterRename() { file_calls() = state().real; }
  AfterRename(const AfterRename&) = delete;
  AfterRename& operator=(const AfterRename&) = delete;

 private:
  struct State {
    FileCalls real{};
    std::string name;
    std::function<void()> then;
  };
  static State& state() {
    static State s;
    return s;
  }
};

/// Runs `t`. `then` is called as soon as a printed line begins with `text`. The output is kept in `t.said`.
inline TrainResult run_until_said(Trainer& t, const std::string& text, const std::function<void()>& then) {
  struct Hearer {
    std::string all, text;
    const std::function<void()>* then;
    bool told = false;
  } hearer{"\n", "\n" + text, &then};
  t.options.out = ::fopencookie(&hearer, "w",
                                {.read = nullptr,
                                 .write = [](void* cookie, const char* data, size_t n) -> ssize_t {
                                   Hearer& h = *static_cast<Hearer*>(cookie);
                                   h.all.append(data, n);
                                   if (!h.told && contains(h.all, h.text)) h.told = true, (*h.then)();
                                   return static_cast<ssize_t>(n);
                                 },
                                 .seek = nullptr,
                                 .close = nullptr});
  const auto close = [&] {
    std::fclose(t.options.out);
    t.said = hearer.all;
  };
  try {
    const TrainResult r = train(t.options);
    close();
    CHECK(hearer.told);
    return r;
  } catch (...) {
    close();
    throw;
  }
}

}  // namespace nacre::test
