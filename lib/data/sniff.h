#pragma once
// Recognises what a file or folder is, for messages about one that was given where another kind is expected.
#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>

namespace nacre::training {

enum class Thing : uint8_t { unknown, empty, stream, weights, audio, json, pointer, pytorch, numpy, ecdc };
constexpr size_t sniffed_bytes = 64;

/// True for the four bytes that begin each frame of MPEG audio. Excludes reserved values, AAC (layer 0) and the byte
/// order mark of UTF-16.
bool is_mpeg_frame(std::string_view head);
/// Decides by the first bytes of a file, up to sniffed_bytes.
Thing thing_of(std::string_view head);
/// Gives `unknown` also for a file that cannot be opened or is not regular.
Thing thing_at(const std::filesystem::path&);
/// The first bytes of an open file, whose position does not change. Empty if it has no position (pipes).
std::string head_of(int fd);

/// "is a .nacre stream, expected WHAT; nacre decode reads it". Empty if `found` is unknown or equals `expected`.
std::string mistaken(Thing found, Thing expected);
/// "; it is a run of nacre train, which --model takes", "; it holds audio files, which nacre encode reads", and
/// similar; empty if nothing is recognised. Inspects only the folder itself, not its subfolders.
std::string about_folder(const std::filesystem::path&, Thing expected);

}  // namespace nacre::training
