#pragma once
// What verbs that work through files share.
#include <functional>
#include <string>

#include "commands.h"
#include "nacre/coding/codec_files.h"

namespace nacre::program {

/// SIGINT, SIGTERM and SIGHUP let what is half-written be removed; a second one leaves at once.
void catch_signals();
const std::atomic<int>& caught_signal();

/// Does every job, one line on stderr for each that cannot be done and, unless quiet, for each that was. `one` returns
/// that line. The exit code: for a single file that of its error, for several 3 if any failed.
int run_jobs(const training::FileJobs&, const char* label, bool quiet,
             const std::function<std::string(const training::FileJob&, const training::FileHooks&)>& one);

inline constexpr const char* beam_help = "code sequences kept per frame while encoding, 1 to 64, in place of the model's";

/// "12.3": with so many digits behind the point.
std::string fixed(double x, int digits);
std::string hex(uint64_t);

}  // namespace nacre::program
