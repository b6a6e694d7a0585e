#pragma once
// Waiting for a descriptor without missing a signal.
#include <functional>

namespace nacre::training {

/// Waits until a descriptor can be read (POLLIN) or written (POLLOUT). `waiting`, if given, is called first and then
/// at least four times a second. What it throws ends the wait.
void wait_for(int fd, short events, const std::function<void()>& waiting);

}  // namespace nacre::training
