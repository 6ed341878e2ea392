// Package containerd tells containerd of the snapshotter: what its configuration says of it, by version.
//
// A setting goes into a file of its own, a drop-in, wherever containerd takes it from there, and into the main file,
// which imports the drop-in, only where it doesn't:
//
//   - containerd 1 reads a plugin's table in a drop-in in the place of the main file's whole table. Only proxies, which
//     are added, can be there. A drop-in without a version is taken with a main file of any version. containerd 1.6
//     ends with a panic when it reads of a proxy that is a differ.
//   - containerd 2 merges tables, and brings old ones up to date behind that, by the version that the last file with
//     one says: a drop-in with a version above the main file's would make it forget the main file's tables of old
//     names. So a drop-in has the main file's version. In one of version 2 the keys of Kubernetes' images are named
//     twice, since containerd looks at the old names only if the table of runtimes is there as well, and then prefers
//     them.
package containerd
