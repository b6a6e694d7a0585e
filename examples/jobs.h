#pragma once
// Shared by the verbs that process files.
#include <functional>
#include <string>

#include "commands.h"
#include "nacre/coding/codec_files.h"

namespace nacre::program {

/// SIGINT, SIGTERM and SIGHUP stop the program after incomplete outputs are removed. A second signal exits at once.
void catch_signals();
const std::atomic<int>& caught_signal();

/// Runs every job. `one` returns the line to print when a job succeeds. Prints one line to stderr for each job that
/// fails and, unless quiet, for each that succeeds. Returns the exit code: for a single file that of its error; for
/// several files 3 if any failed.
int run_jobs(const training::FileJobs&, const char* label, bool quiet,
             const std::function<std::string(const training::FileJob&, const training::FileHooks&)>& one);

inline constexpr const char* beam_help =
    "code sequences kept per frame while encoding (default: codec.beam of the model)";

inline constexpr const char* denoise_help =
    "remove noise from speech; needs a model with codec.denoise encoder (for encode) or decoder (for decode)";
/// --denoise of a verb that uses these halves of the codec. Throws Error(usage) if neither of them denoises.
void denoise(Codec&, bool encodes, bool decodes);

/// "12.3": a number with the given number of decimals.
std::string fixed(double x, int digits);
std::string hex(uint64_t);

}  // namespace nacre::program
