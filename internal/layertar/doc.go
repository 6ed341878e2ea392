// Package layertar reads the archives that image layers come as, and unpacks them.
//
// There is one Reader, so that whatever takes a layer – the driver's store, a publisher of repositories, an extraction
// into a folder – takes the same archives and makes the same of them. The rule is: what the engines unpack is taken,
// and means what it means to them; what no engine unpacks is refused. Engines are Docker 20.10 and 26.1 on overlay2
// (pkg/archive, in a chroot of the layer's folder) and containerd (pkg/archive, Apply). Both read by archive/tar, as
// this package does; spec is image-spec's layer.md.
//
// The words:
//
//   - An entry is what the archive says of one name. Extended headers are part of the entry they precede.
//   - A whiteout is an entry whose last name begins with ".wh.". It hides a name of the layers below; ".wh..wh..opq",
//     the opaque whiteout, hides all that its folder has in the layers below.
//   - An implied folder is one that the archive leads through and doesn't mention.
//   - The end marker is two blocks of 512 zero bytes behind the last entry.
//   - A composed image is what a thin image's layers are shown by (package erofs). It bounds what may be converted.
//
// What is taken, cleaned and refused. Package layertartest has the rows' archives; tests run them against all who take
// layers, and against an engine on overlay2:
//
//	the archive's end
//	  no end marker, half of one, last file unpadded,   taken: digests tell whether an archive is whole, not its form (readers of
//	  no bytes at all                                   all kinds)
//	  an extended header of no entry                    ignored (engines)
//	  ends within a header or a file                    refused (engines: unexpected EOF)
//	  bytes behind the end marker                       read and ignored (engines)
//	names
//	  "./a", "/a", "a//b", "a/../b", "../a", "/../a"    cleaned as text, as if the root were "/" (engines)
//	  a file's name with a slash at its end             the file (engines: the type alone counts)
//	  names over 255 bytes, paths over 4095             refused (engines: ENAMETOOLONG)
//	  the root                                          a folder's entry is handed on; what else it may be is ignored (engines)
//	  below a link of the same layer                    where the link leads to within the layer's root (engines, by chroot);
//	                                                    folders that are missing there are made (containerd)
//	  below a loop of links, below a file               refused (engines: ELOOP, ENOTDIR)
//	  the same name again                               the later one counts; a folder stays and gets the later attributes (containerd;
//	                                                    Docker's overlay2 does so, its tar-split takes no path twice)
//	  implied folders                                   root's, 0755 (engines), as old as the first entry in them; where entries are
//	                                                    bounded they count, too
//	  paths that lead through ever longer links         refused: all entries together have a bound
//	types
//	  hard link to what isn't there, to a folder, to    refused (engines: ENOENT, EPERM)
//	  itself, to what it replaces
//	  hard link to a symbolic link                      another name of the link itself (engines: linkat without AT_SYMLINK_FOLLOW)
//	  attributes of a hard link's entry                 the file's from then on (engines)
//	  old GNU sparse files, contiguous files            regular files (POSIX pax on type 7; archive/tar fills holes)
//	  sparse files with too little or too much data     refused
//	  device numbers over 4095:1048575                  unpacked: cut to 12 and 20 bits (engines, kernel); converted: refused, as a
//	                                                    composed image can't show what the archive says
//	  global extended headers                           ignored (engines)
//	  types that archive/tar doesn't know               refused (engines: unhandled type)
//	whiteouts
//	  of any type: hard links, links, devices, …        by name alone (engines; spec: an empty file with a special filename)
//	  ".wh.", ".wh..", ".wh..."                         refused (engines: EEXIST; containerd: invalid whiteout)
//	  of a name of 252 to 255 bytes                     unpacked (engines); converted: refused, as files can't have the whiteout's name
//	  in the lowest layer                               hide nothing: left out where that is known (containerd, which executes them)
//	  of a name that the same layer has, before or      hides the name in the layers below and not the layer's own (spec); a folder
//	  after                                             is then opaque
//	  other names with ".wh..wh."                       by name, like any; AUFS' own, of no meaning elsewhere
//	attributes
//	  owners of 2^32-1                                  leave a file as it is, root's if new (engines, chown(2))
//	  owners of 2^32 and beyond, negative ones          their low 32 bits (engines, kernel), with a note; refused where owners are mapped
//	  times before 1970 and after 2262                  1970's first second (engines)
//	  extended attributes of overlayfs                  left out: they instruct the kernel
//	  … on symbolic links                               the link's own (engines: lsetxattr(2))
//	  … user.* on what is no file and no folder, ACLs   left out with a note (engines: EPERM, ENOTSUP)
//	    on symbolic links
//	  … which the file system hasn't got                left out with a note (engines: ENOTSUP, EPERM)
//	  … without a name, of over 255 bytes, with a       refused (engines: ERANGE, EINVAL, E2BIG)
//	    value of over 65,536
//	  … which a composed image has no room for          unpacked; converted: refused
//
// Unpacking trusts nothing in the archive: whatever links it holds, nothing is reached outside of the folder that is
// unpacked into. It relies on nobody else changing that folder meanwhile. Folders are opened name by name with
// O_NOFOLLOW, links are read and never followed by the kernel, and all else is done to the last name in an open folder,
// by calls that Linux 4.18 has. It needs /proc.
package layertar
