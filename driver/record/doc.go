// Package record runs a thin image once, to find out what its start reads.
//
// Three processes do it, each the program itself started again:
//
//   - The caller's, which says what is to be run and gets the profile: Run.
//   - The recorder has namespaces of mounts and processes and a node (package node) of its own, with an empty cache,
//     that fetches nothing but what is read. All that it mounts and starts goes with it, however it ends. Its folder
//     is removed by the next recording, if it can't be by this one.
//   - The container is the image's program, in namespaces of its own and with the image as its root, with the
//     capabilities that engines leave to containers but for that of making devices, and no network but its own
//     loopback. Nothing is open in it that is the host's, not even the file of this program.
//
// That is less of a wall than an engine builds: there is no seccomp filter, and no limit of memory and processes. An
// image that isn't trusted is started in an engine, whose node records it (cvmfs-graphdriver cache profile).
package record
