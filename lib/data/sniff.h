#pragma once
// What a file or folder is that was given where something else is expected.
#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>

namespace nacre::training {

enum class Thing : uint8_t { unknown, empty, stream, weights, audio, json, pointer };
constexpr size_t sniffed_bytes = 64;

/// The four bytes that begin each frame of MPEG audio: no value that is reserved, no AAC (layer 0), not the mark that text in
/// UTF-16 begins with.
bool is_mpeg_frame(std::string_view head);
/// By the first bytes of a file, as many of sniffed_bytes as it has.
Thing thing_of(std::string_view head);
/// unknown, too, for what cannot be opened or is no regular file.
Thing thing_at(const std::filesystem::path&);
/// The first bytes of an open file, whose position stays. Empty where it cannot be had (pipes).
std::string head_of(int fd);

/// "is a .nacre stream, expected WHAT; nacre decode reads it". Empty for what is unknown, or itself the thing that is
/// expected.
std::string mistaken(Thing found, Thing expected);
/// "; it is a run of nacre train, which --model takes", "; it holds audio files, which nacre encode reads", and the like;
/// empty where nothing is known. Looks no deeper than the folder itself.
std::string about_folder(const std::filesystem::path&, Thing expected);

}  // namespace nacre::training
