package bundle_test

import (
	"bytes"
	"context"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/registry"

	"cvmfs-graphdriver/bundle"
	"cvmfs-graphdriver/rootfs"
)

// exampleProgram makes what passes for the plugin's program, the head of a static executable, in a folder of its own.
func exampleProgram() (program string, remove func()) {
	head := elf.Header64{
		Type: uint16(elf.ET_EXEC), Machine: uint16(elf.EM_X86_64), Version: uint32(elf.EV_CURRENT), Phoff: 64,
		Ehsize: 64, Phentsize: 56, Phnum: 1,
	}
	copy(head.Ident[:], elf.ELFMAG)
	head.Ident[elf.EI_CLASS] = byte(elf.ELFCLASS64)
	head.Ident[elf.EI_DATA] = byte(elf.ELFDATA2LSB)
	head.Ident[elf.EI_VERSION] = byte(elf.EV_CURRENT)
	var b bytes.Buffer
	dir, err := os.MkdirTemp("", "example-")
	program = filepath.Join(dir, "cvmfs-graphdriver-plugin")
	if err := errors.Join(err, binary.Write(&b, binary.LittleEndian, head),
		binary.Write(&b, binary.LittleEndian, elf.Prog64{Type: uint32(elf.PT_LOAD)}),
		os.WriteFile(program, b.Bytes(), 0o755)); err != nil {
		panic(err)
	}
	return program, func() { os.RemoveAll(dir) }
}

// A program becomes a bundle, and the bundle an archive, which whoever gets it reads and checks before it is used. The
// same program, version, commit and time give the same bytes.
func ExampleNew() {
	program, remove := exampleProgram()
	defer remove()

	b, err := bundle.New(program, rootfs.Build{Version: "1.2.0", Commit: "0123abc", Time: time.Unix(1767225600, 0)})
	if err != nil {
		fmt.Println(err)
		return
	}
	archive, err := b.Save(context.Background(), filepath.Dir(program), bundle.TarGz)
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(filepath.Base(archive))

	got, err := bundle.Open(archive)
	if err != nil {
		fmt.Println(err)
		return
	}
	if err := got.Check(); err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println("built", got.Build.Time.Format(time.DateOnly), "for", got.Build.Arch)

	// Output:
	// cvmfs-graphdriver-plugin-1.2.0-amd64.tar.gz
	// built 2026-01-01 for amd64
}

// A registry keeps bundles as plugins that `docker plugin install` takes.
func ExamplePush() {
	server := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	defer server.Close()
	ref := strings.TrimPrefix(server.URL, "http://") + "/cvmfs/graphdriver:1.2"
	program, remove := exampleProgram()
	defer remove()

	b, err := bundle.New(program, rootfs.Build{Version: "1.2.0"})
	if err != nil {
		fmt.Println(err)
		return
	}
	pushed, err := bundle.Push(context.Background(), ref, []*bundle.Bundle{b}, bundle.Remote{})
	if err != nil {
		fmt.Println(err)
		return
	}
	pulled, digest, err := bundle.Pull(context.Background(), ref, "amd64", bundle.Remote{})
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println("pulled", pulled.Build.Version, digest == pushed[0].Digest)

	// Output:
	// pulled 1.2.0 true
}

// What a bundle asks of a host is in its summary, before anything of it runs.
func ExampleBundle_Summary() {
	program, remove := exampleProgram()
	defer remove()

	b, err := bundle.New(program, rootfs.Build{Version: "1.2.0"})
	if err != nil {
		fmt.Println(err)
		return
	}
	if err := b.Check(); err != nil {
		fmt.Println("it asks for more than it should:", err)
	}
	summary := b.Summary()
	fmt.Println(summary.Version, "for", summary.Arch)
	fmt.Println("network:", summary.Network)
	for _, s := range summary.Settings {
		fmt.Printf("setting: %s=%s\n", s.Name, s.Default)
	}

	// Output:
	// 1.2.0 for amd64
	// network: host
	// setting: cvmfs_ext_config=/etc/cvmfs
	// setting: minio_ext_config=/proc/tty/ldisc
	// setting: fuse=/dev/fuse
	// setting: DEBUG=0
}

// A plugin's name decides what "storage-driver" in daemon.json has to be.
func ExampleCheckName() {
	for _, name := range []string{"docker.io/cvmfs/graphdriver:1.2", "overlay2"} {
		driver, err := bundle.CheckName(name)
		if err != nil {
			reason, _, _ := strings.Cut(err.Error(), ": take")
			fmt.Println(reason)
			continue
		}
		fmt.Printf("\"storage-driver\": %q\n", driver)
	}

	// Output:
	// "storage-driver": "cvmfs/graphdriver:1.2"
	// plugin name "overlay2": the engine has a storage driver of its own of that name
}
