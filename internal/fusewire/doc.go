// Package fusewire answers the kernel's FUSE requests on an already mounted /dev/fuse descriptor, in a way that lets
// one server process end and another go on with the same mount.
//
// The words used here:
//
//   - The device is an open file description of /dev/fuse that belongs to one mount. Whoever holds it last keeps the
//     mount alive. It is inherited by server processes; it is never opened twice.
//   - The handshake is the INIT request, the first one after mounting. It is answered once, by Handshake, right after
//     Mount. A server never sees it; it is told the outcome, an Init.
//   - A node is what the kernel calls an inode, named by 64 bits that the Handler chooses. The root is node 1. As a
//     successor knows nothing of what its predecessor has said, node ids must follow from what they name (its content),
//     not from memory, and FORGET has nothing to do.
//   - To block is to wait for something that is not on this machine. Requests that may block run in goroutines; all
//     others are answered by the goroutine that read them.
//   - An interrupt is the kernel's word that the process which waits for a request got a signal. The request goes on
//     for a grace time, since most signals are harmless: a program that gets EINTR from a file may fail of it, and an
//     overlay that gets it from one folder takes the next one for good. Then the request's context is cancelled, if the
//     process is about to end or can't be seen from here. So a process that is killed waits no longer than that.
//   - Resending is what the kernel does with requests that were read but not answered when it is told that their server
//     died (FUSE_NOTIFY_RESEND, Linux 6.9). Resent requests have bit 63 of their unique number set, which the reply
//     must echo.
//   - The journal does the same for older kernels: a memory file that outlives the server, into whose slots requests
//     are read and where they lie until they are answered. A successor answers what it finds there first.
//
// The protocol is that of include/uapi/linux/fuse.h, version 7.23 (Linux 3.16) and later, in the machine's byte order.
//
// File handles are not used: OPEN and OPENDIR are answered with ENOSYS, by which the kernel stops sending them.
package fusewire
