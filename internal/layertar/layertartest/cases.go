package layertartest

import (
	"fmt"
	"maps"
	"strings"
)

func file(name, body string) Item       { return Item{Name: name, Body: body} }
func folder(name string) Item           { return Item{Name: name, Type: '5'} }
func symlink(name, to string) Item      { return Item{Name: name, Type: '2', Link: to, Mode: 0o777} }
func hardLink(name, to string) Item     { return Item{Name: name, Type: '1', Link: to} }
func char(name string, d ...int64) Item { return Item{Name: name, Type: '3', Major: d[0], Minor: d[1]} }

// with returns an item an extended attribute.
func with(i Item, name, value string) Item {
	pax := map[string]string{"SCHILY.xattr." + name: value}
	maps.Copy(pax, i.PAX)
	i.PAX = pax
	return i
}

// owned returns an item an owner.
func owned(i Item, uid, gid int64) Item {
	i.UID, i.GID = uid, gid
	return i
}

func isFile(path string, size int) string {
	return fmt.Sprintf("%s - 644 0:0 @%d %d bytes", path, Time, size)
}
func isFolder(path string) string   { return fmt.Sprintf("%s d 755 0:0 @%d", path, Time) }
func isLink(path, to string) string { return fmt.Sprintf("%s l 0:0 @%d -> %s", path, Time, to) }

func isDev(path string, d ...int) string {
	return fmt.Sprintf("%s c 644 0:0 @%d %d:%d", path, Time, d[0], d[1])
}

// Cases returns the cases, by the parts of the table.
func Cases() []Case {
	var all []Case
	for _, part := range [][]Case{ends(), names(), types(), whiteouts(), attributes()} {
		all = append(all, part...)
	}
	return all
}

func ends() []Case {
	a, tree := Bare(file("a", "content")), []string{isFile("a", 7)}
	return []Case{
		{Name: "end/marker", Archive: Tar(file("a", "content")), Tree: tree},
		{Name: "end/no marker", Archive: a, Tree: tree},
		{Name: "end/half a marker", Archive: append(Bare(file("a", "content")), make([]byte, block)...), Tree: tree},
		{Name: "end/not padded", Archive: a[:block+7], Tree: tree},
		{Name: "end/no bytes", Archive: nil, Tree: []string{}},
		{Name: "end/marker alone", Archive: Marker(), Tree: []string{}},
		{
			Name: "end/bytes behind", Archive: append(Tar(file("a", "content")), strings.Repeat("garbage", 50_000)...),
			Tree: tree,
		},
		{
			Name: "end/extended header of nothing", Archive: Bare(with(file("a", ""), "user.a", "1"))[:2*block],
			Tree: []string{},
		},
		{Name: "end/within content", Archive: a[:block+6]},
		{Name: "end/within a header", Archive: a[:block-1]},
		{Name: "end/within the marker", Archive: append(Bare(file("a", "content")), make([]byte, block+1)...)},
		{Name: "end/no archive", Archive: []byte(strings.Repeat("not a tar ", 1000))},
	}
}

func names() []Case {
	long := strings.Repeat("n", 255)
	pax := func(i Item, path string) Item { i.PAX = map[string]string{"path": path}; return i }
	return []Case{
		{
			Name: "name/cleaned", Archive: Tar(file("./a", "1"), file("/b", "1"), file("d//./c", "1"),
				file("d/x/../e", "1"), file("/../f", "1")),
			Tree: []string{
				isFile("a", 1), isFile("b", 1), isFolder("d"), isFile("d/c", 1), isFile("d/e", 1),
				isFile("f", 1),
			},
			Differs: "takes no name that leads upwards, as it isn't in a chroot; implied folders are of now",
		},
		{
			Name: "name/upwards", Archive: Tar(file("../../a", "1"), hardLink("b", "../a")),
			Tree:    []string{isFile("a", 1), isFile("b", 1)},
			Differs: "takes no name that leads upwards",
		},
		{Name: "name/file with a slash", Archive: Tar(file("tf/", "1")), Tree: []string{isFile("tf", 1)}},
		{Name: "name/longest", Archive: Tar(pax(file("x", "1"), long)), Tree: []string{isFile(long, 1)}},
		{Name: "name/too long", Archive: Tar(pax(file("x", "1"), long+"n"))},
		{Name: "name/path too long", Archive: Tar(pax(file("x", "1"), strings.Repeat("name/", 900)+"f"))},
		{
			Overlay2: "the engine's tar-split takes no path twice", Name: "name/root",
			Archive: Tar(owned(folder("./"), 5, 5), symlink(".", "x"), hardLink("/", "x"), file("a", "1")),
			Tree:    []string{isFile("a", 1)},
		},
		{
			Overlay2: "the engine's tar-split takes no path twice", Name: "name/again",
			Archive: Tar(file("a", "1"), file("a", "22"), folder("d"), file("d/x", "1"), owned(folder("d"), 3, 4),
				folder("e"),
				file("e/x", "1"), file("e", "333"), symlink("l", "d"), folder("l"), file("l/y", "1")),
			Tree: []string{
				isFile("a", 2), fmt.Sprintf("d d 755 3:4 @%d", Time), isFile("d/x", 1), isFile("e", 3),
				isFolder("l"), isFile("l/y", 1),
			},
		},
		{
			Name: "name/below links", Archive: Tar(folder("usr"), folder("usr/lib"), symlink("lib", "usr/lib"),
				file("lib/c", "1"), symlink("up", "../../usr"),
				file("up/o", "1"), symlink("usr/abs", "/lib"), file("usr/abs/a", "1"), hardLink("h", "lib/c")),
			Tree: []string{
				isFolder("usr"), isFolder("usr/lib"), isLink("lib", "usr/lib"), isFile("usr/lib/c", 1),
				isLink("up", "../../usr"),
				isFile("usr/o", 1), isLink("usr/abs", "/lib"), isFile("usr/lib/a", 1), isFile("h", 1),
			},
			Differs: "takes no link that leads upwards",
		},
		{
			Overlay2: "makes no folders there; containerd does", Name: "name/below a link to nowhere",
			Archive: Tar(symlink("l", "no/where"), file("l/a", "1")),
			Tree:    []string{isLink("l", "no/where"), isFolder("no"), isFolder("no/where"), isFile("no/where/a", 1)},
			Differs: "implied folders are of now",
		},
		{
			Overlay2: "removes the link by itself and loses its way", Name: "name/below itself",
			Archive: Tar(folder("d"), symlink("d/self", "."), file("d/self/a", "1"), file("d/self/self", "22"),
				file("d/b", "1")),
			Tree:    []string{isFolder("d"), isFile("d/self", 2), isFile("d/a", 1), isFile("d/b", 1)},
			Differs: "removes the link by itself and loses its way",
		},
		{Name: "name/below a loop", Archive: Tar(symlink("a", "b"), symlink("b", "a"), file("a/c", ""))},
		{Name: "name/below a file", Archive: Tar(file("a", ""), file("a/b", ""))},
		{Name: "name/implied", Archive: Tar(owned(file("a/b/c", "1"), 7, 7)), Tree: []string{
			isFolder("a"), isFolder("a/b"),
			fmt.Sprintf("a/b/c - 644 7:7 @%d 1 bytes", Time),
		}, Differs: "implied folders are of now"},
	}
}

func types() []Case {
	global := Item{Name: "pax_global_header", Type: 'g', Body: records(map[string]string{"comment": "c"})}
	contiguous := Item{Name: "a", Type: '7', Body: "1"}
	second := owned(hardLink("b", "a"), 1, 2)
	second.Mode, second.Mtime = 0o600, Time+1
	return []Case{
		{
			Name: "type/hard links", Archive: Tar(file("a", "1"), hardLink("d/b", "./a"), hardLink("c", "/d/b"),
				symlink("l", "a"), hardLink("m", "l"),
				char("n", 1, 3), hardLink("o", "n")),
			Tree: []string{
				isFile("a", 1), isFolder("d"), isFile("d/b", 1), isFile("c", 1), isLink("l", "a"),
				isLink("m", "a"), isDev("n", 1, 3), isDev("o", 1, 3),
			},
			Differs: "implied folders are of now",
		},
		{
			Name: "type/hard link's attributes", Archive: Tar(file("a", "1"), second),
			Tree: []string{
				fmt.Sprintf("a - 600 1:2 @%d 1 bytes", Time+1),
				fmt.Sprintf("b - 600 1:2 @%d 1 bytes", Time+1),
			},
		},
		{Name: "type/hard link to nothing", Archive: Tar(hardLink("b", "a"))},
		{Name: "type/hard link to later", Archive: Tar(hardLink("b", "a"), file("a", ""))},
		{Name: "type/hard link to a folder", Archive: Tar(folder("a"), hardLink("b", "a"))},
		{Name: "type/hard link to the root", Archive: Tar(hardLink("b", "."))},
		{Name: "type/hard link to itself", Archive: Tar(file("a", "1"), hardLink("a", "./a"))},
		{Name: "type/hard link to itself by a link", Archive: Tar(folder("d"), file("d/a", "1"), symlink("l", "d"),
			hardLink("d/a", "l/a"))},
		{Name: "type/hard link to what it replaces", Archive: Tar(folder("a"), file("a/b", "1"), hardLink("a", "a/b"))},
		{Name: "type/hard link to a whiteout", Archive: Tar(file(".wh.a", ""), hardLink("b", ".wh.a"))},
		{Name: "type/global header", Archive: Tar(global, file("a", "1")), Tree: []string{isFile("a", 1)}},
		{
			Overlay2: "takes no such type", Name: "type/contiguous file", Archive: Tar(contiguous),
			Tree: []string{isFile("a", 1)}, Differs: "takes no such type",
		},
		{
			Name: "type/fifo", Archive: Tar(Item{Name: "p", Type: '6'}),
			Tree: []string{fmt.Sprintf("p p 644 0:0 @%d", Time)},
		},
		{
			Name: "type/greatest device", Archive: Tar(char("c", 4095, 1048575)),
			Tree: []string{isDev("c", 4095, 1048575)},
		},
		{
			Name: "type/device too great", Archive: Tar(char("c", 5000, 1<<21+5)),
			Tree: []string{isDev("c", 5000&4095, 5)}, Unshown: true,
		},
		{
			Name: "type/device far too great", Archive: Tar(char("c", 1<<32+7, 1<<32+9)),
			Tree: []string{isDev("c", 7, 9)}, Unshown: true,
			Differs: "engines cut the number, as they are in use",
		},
		{
			Name: "type/negative device", Archive: Tar(char("c", -1, 3)), Tree: []string{isDev("c", 4095, 3)},
			Unshown: true, Differs: "engines cut the number",
		},
		{Name: "type/unknown", Archive: Tar(Item{Name: "v", Type: 'V'})},
		{Name: "type/link to nothing at all", Archive: Tar(symlink("l", ""))},
	}
}

func whiteouts() []Case {
	all := []Case{
		{
			Name: "whiteout/opaque", Archive: Tar(folder("d"), file("d/.wh..wh..opq", ""), file("d/a", "1")),
			Tree: []string{isFolder("d"), "d/ opaque", isFile("d/a", 1)},
		},
		{Name: "whiteout/opaque root", Archive: Tar(file(".wh..wh..opq", "")), Tree: []string{" opaque"}},
		{
			Name: "whiteout/through a link", Archive: Tar(folder("d"), symlink("l", "d"), file("l/.wh.x", ""),
				file("l/.wh..wh..opq", "")),
			Tree: []string{isFolder("d"), isLink("l", "d"), "d/x whiteout", "d/ opaque"},
		},
		{
			Name: "whiteout/with content and attributes", Archive: Tar(with(file(".wh.x", "junk"), "user.a", "b")),
			Tree: []string{"x whiteout"},
		},
		{
			Name:    "whiteout/of the longest name",
			Archive: Tar(Item{Name: "x", PAX: map[string]string{"path": ".wh." + strings.Repeat("n", 255)}}),
			Tree:    []string{strings.Repeat("n", 255) + " whiteout"}, Unshown: true,
		},
		{
			Name:    "whiteout/of a name too long",
			Archive: Tar(Item{Name: "x", PAX: map[string]string{"path": ".wh." + strings.Repeat("n", 256)}}),
		},
		{Name: "whiteout/of AUFS", Archive: Tar(file(".wh..wh.aufs", "")), Tree: []string{".wh.aufs whiteout"}},
		{
			Name: "whiteout/hard links of AUFS", Archive: Tar(file(".wh..wh.plnk/1.2", "body"),
				hardLink("a", ".wh..wh.plnk/1.2"), hardLink(".wh.z", ".wh..wh.plnk/3.4")),
			Tree: []string{".wh.plnk whiteout", isFile(".wh..wh.plnk/1.2", 4), isFile("a", 4), "z whiteout"},
		},
	}
	for kind, i := range map[string]Item{
		"hard link to a whiteout": hardLink("e/.wh.z", "e/.wh.gone"),
		"hard link of AUFS":       hardLink("e/.wh.z", ".wh..wh.plnk/1.2"),
		"hard link to a file":     hardLink("e/.wh.z", "e/f"), "link": symlink("e/.wh.z", "x"),
		"device": char("e/.wh.z", 1, 3),
		"fifo":   {Name: "e/.wh.z", Type: '6'}, "folder": folder("e/.wh.z"),
	} {
		all = append(all, Case{
			Name: "whiteout/" + kind, Archive: Tar(folder("e"), file("e/f", "1"), i),
			Tree: []string{isFolder("e"), isFile("e/f", 1), "e/z whiteout"},
		})
	}
	for _, name := range []string{".wh.", ".wh..", ".wh...", "d/.wh.", "d/.wh.../"} {
		all = append(all, Case{Name: "whiteout/malformed " + name, Archive: Tar(folder("d"), file(name, ""))})
	}
	return all
}

func attributes() []Case {
	old, far := file("old", ""), file("far", "")
	old.Mtime, far.Mtime = -5, 1<<40
	label := func(i Item, as string) Item { return with(i, "security.label", as) }
	return []Case{
		{
			Name: "attribute/modes and owners", Archive: Tar(Item{Name: "s", Mode: 0o104755, UID: 4294967294, GID: 3},
				Item{Name: "d", Type: '5', Mode: 0o1777}),
			Tree: []string{
				fmt.Sprintf("s - 4755 4294967294:3 @%d 0 bytes", Time),
				fmt.Sprintf("d d 1777 0:0 @%d", Time),
			},
		},
		{
			Name: "attribute/owner that leaves it", Archive: Tar(owned(file("a", ""), 1<<32-1, 5),
				owned(file("b", ""), 7, 8), owned(hardLink("c", "b"), 1<<32-1, 9)),
			Tree: []string{
				fmt.Sprintf("a - 644 0:5 @%d 0 bytes", Time), fmt.Sprintf("b - 644 7:9 @%d 0 bytes", Time),
				fmt.Sprintf("c - 644 7:9 @%d 0 bytes", Time),
			},
		},
		{
			Name: "attribute/owner of no system", Archive: Tar(owned(file("a", ""), 1<<32+5, 1<<33)),
			Tree: []string{fmt.Sprintf("a - 644 5:0 @%d 0 bytes", Time)},
		},
		{
			Name: "attribute/times no engine sets", Archive: Tar(old, far),
			Tree: []string{"old - 644 0:0 @0 0 bytes", "far - 644 0:0 @0 0 bytes"},
		},
		{
			Name: "attribute/labels", Archive: Tar(label(file("secret", "1"), "shadow"),
				label(symlink("link", "secret"), "etc"), label(symlink("away", "/proc/mounts"), "etc"),
				label(folder("d"), "dir"), label(symlink("d/up", ".."), "up"), label(char("n", 1, 3), "dev")),
			Tree: []string{
				isFile("secret", 1) + " security.label=shadow", isLink("link", "secret") + " security.label=etc",
				isLink("away", "/proc/mounts") + " security.label=etc",
				isFolder("d") + " security.label=dir", isLink("d/up", "..") + " security.label=up",
				isDev("n", 1, 3) + " security.label=dev",
			},
			Differs: "go-archive sets those of a link on what it leads to (moby/go-archive 109)",
		},
		{
			Name: "attribute/link of a labelled link", Archive: Tar(label(symlink("l", "none"), "one"),
				label(hardLink("m", "l"), "two")),
			Tree:    []string{isLink("l", "none") + " security.label=two", isLink("m", "none") + " security.label=two"},
			Differs: "as above",
		},
		{
			Overlay2: "engines don't look", Name: "attribute/of overlayfs",
			Archive: Tar(with(with(file("a", ""), "trusted.overlay.redirect", "/x"), "user.overlay.metacopy", ""),
				with(folder("d"), "trusted.overlay.opaque", "y")),
			Tree: []string{isFile("a", 0), isFolder("d")}, Differs: "engines don't look",
		},
		{
			Overlay2: "the ACL of this case is none, which is seen first",
			Name:     "attribute/that such a file can't have",
			Archive: Tar(with(symlink("l", "x"), "user.a", "1"), with(char("c", 1, 3), "user.a", "1"),
				with(symlink("m", "x"), "system.posix_acl_access", "1")),
			Tree: []string{isLink("l", "x"), isDev("c", 1, 3), isLink("m", "x")}, Differs: "as above",
		},
		{Name: "attribute/without a name", Archive: Tar(with(file("a", ""), "user.", "1"))},
		{Name: "attribute/of no name at all", Archive: Tar(with(file("a", ""), "", "1"))},
		{Name: "attribute/name too long", Archive: Tar(with(file("a", ""), "user."+strings.Repeat("n", 251), "1"))},
		{Name: "attribute/value too long", Archive: Tar(with(file("a", ""), "user.a", strings.Repeat("v", 65_537)))},
	}
}
