package bundle

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"aead.dev/minisign"
	spdx "github.com/spdx/tools-golang/spdx/v2/v2_3"
	"github.com/spdx/tools-golang/spdxlib"

	"cvmfs-graphdriver/rootfs"
	"cvmfs-graphdriver/test/testutil"
)

func keys(t *testing.T) (minisign.PublicKey, minisign.PrivateKey) {
	t.Helper()
	public, private, err := minisign.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	return public, private
}

// archiveOf returns the archive of a small bundle, in the folder of an output.
func archiveOf(t *testing.T, o Options) string {
	t.Helper()
	o.Formats = []Format{TarGz}
	return filepath.Join(built(t, o), "cvmfs-graphdriver-plugin-1.2.3-"+runtime.GOARCH+".tar.gz")
}

// headers are an archive's, with the content of files.
type header struct {
	tar.Header
	data []byte
}

// unpack returns an archive's entries.
func unpack(t *testing.T, archive string) (all []header) {
	t.Helper()
	packed, err := os.ReadFile(archive)
	if err != nil {
		t.Fatal(err)
	}
	z, err := gzip.NewReader(bytes.NewReader(packed))
	if err != nil {
		t.Fatal(err)
	}
	testutil.Untar(t, z, func(h *tar.Header, content []byte) { all = append(all, header{*h, content}) })
	return all
}

// pack writes an archive of entries.
func pack(t *testing.T, archive string, all []header) {
	t.Helper()
	var b bytes.Buffer
	z, err := gzip.NewWriterLevel(&b, gzip.BestSpeed)
	if err != nil {
		t.Fatal(err)
	}
	out := tar.NewWriter(z)
	for _, h := range all {
		if h.Typeflag == tar.TypeReg {
			h.Size = int64(len(h.data))
		}
		if err := out.WriteHeader(&h.Header); err != nil {
			t.Fatal(err)
		}
		if _, err := out.Write(h.data); err != nil {
			t.Fatal(err)
		}
	}
	if err := out.Close(); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(archive, b.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
}

// Each is refused even where no sum tells that the archive was changed.
func TestTamperedArchivesAreRefused(t *testing.T) {
	const top = "cvmfs-graphdriver-plugin-1.2.3/"
	whole := unpack(t, archiveOf(t, options(t)))
	add := func(h tar.Header, data string) func([]header) []header {
		return func(all []header) []header {
			h.Mode = 0o644
			return append(all, header{h, []byte(data)})
		}
	}
	edit := func(name string, change func(*header)) func([]header) []header {
		return func(all []header) []header {
			for i := range all {
				if all[i].Name == top+name {
					change(&all[i])
					return all
				}
			}
			t.Fatalf("no %s", name)
			return nil
		}
	}
	config := func(old, with string) func([]header) []header {
		return edit("config.json", func(h *header) {
			if !bytes.Contains(h.data, []byte(old)) {
				t.Fatalf("config.json hasn't got %s", old)
			}
			h.data = bytes.Replace(h.data, []byte(old), []byte(with), 1)
		})
	}
	reg := func(name string) tar.Header { return tar.Header{Typeflag: tar.TypeReg, Name: name} }
	for name, test := range map[string]struct {
		change func([]header) []header
		says   string
	}{
		"nothing":                 {func(all []header) []header { return all }, ""},
		"an absolute path":        {add(reg("/etc/passwd"), "x"), "leads out of the bundle"},
		"a path upwards":          {add(reg(top+"../../x"), "x"), "leads out of the bundle"},
		"a path that isn't plain": {add(reg(top+"rootfs//x"), "x"), "leads out of the bundle"},
		"a symbolic link": {add(tar.Header{
			Typeflag: tar.TypeSymlink, Name: top + "rootfs/l",
			Linkname: "/etc",
		}, ""), "neither a folder nor a file"},
		"a hard link": {add(tar.Header{
			Typeflag: tar.TypeLink, Name: top + "rootfs/l",
			Linkname: "/etc/passwd",
		}, ""), "neither a folder nor a file"},
		"a device": {add(tar.Header{Typeflag: tar.TypeBlock, Name: top + "rootfs/dev/sda", Devmajor: 8},
			""), "neither a folder nor a file"},
		"a FIFO": {
			add(tar.Header{Typeflag: tar.TypeFifo, Name: top + "rootfs/run/f"}, ""),
			"neither a folder nor a file",
		},
		"another file": {add(reg(top+"rootfs/bin/sh"), "x"), `"rootfs/bin/sh" doesn't belong there`},
		"another folder on top": {
			add(tar.Header{Typeflag: tar.TypeDir, Name: "other/"}, ""),
			"unpacks to more than one folder",
		},
		"an entry twice":          {add(reg(top+"config.json"), "{}"), "is there twice"},
		"a file below a file":     {add(reg(top+"config.json/x"), "x"), "has no folder"},
		"a file without a folder": {add(reg(top+"rootfs/a/b"), "x"), "has no folder"},
		"an attribute": {add(tar.Header{
			Typeflag: tar.TypeReg, Name: top + "rootfs/x",
			PAXRecords: map[string]string{"SCHILY.xattr.security.capability": "x"},
		}, ""), "extended attributes"},
		"another owner": {edit("rootfs/", func(h *header) { h.Uid = 1000 }), "belongs to 1000:0"},
		"a set-uid program": {
			edit("rootfs/bin/cvmfs-graphdriver-plugin", func(h *header) { h.Mode = 0o4755 }),
			"and should have -rwxr-xr-x",
		},
		"a folder for all": {
			edit("rootfs/run/", func(h *header) { h.Mode = 0o777 }),
			"and should have drwxr-xr-x",
		},
		"a folder that is missing": {
			func(all []header) []header { return withoutEntry(all, top+"rootfs/sys/") },
			`"rootfs/sys" is missing`,
		},
		"no program": {func(all []header) []header {
			return withoutEntry(all,
				top+"rootfs/bin/cvmfs-graphdriver-plugin")
		}, "has no rootfs/bin/cvmfs-graphdriver-plugin"},
		"a script as program": {edit("rootfs/bin/cvmfs-graphdriver-plugin",
			func(h *header) { h.data = []byte("#!/bin/sh\n") }), "isn't an ELF executable"},
		"a program of another architecture": {edit("rootfs/usr/share/cvmfs-graphdriver/build.json", func(h *header) {
			h.data = bytes.Replace(h.data, []byte(runtime.GOARCH), []byte("other"), 1)
		}), "build.json says \"other\""},
		"another version": {edit("rootfs/usr/share/cvmfs-graphdriver/build.json", func(h *header) {
			h.data = bytes.Replace(h.data, []byte("1.2.3"), []byte("1.2.4"), 1)
		}), "is version \"1.2.3\""},
		"an archive of nothing": {func([]header) []header { return nil }, "has no config.json"},
		"too large": {
			edit("config.json", func(h *header) { h.data = make([]byte, maxSize+1) }),
			"larger than any bundle",
		},
		"too many entries": {tooMany, "more than 1000 entries"},
		"a capability more": {
			config(`"CAP_SYS_ADMIN"`, `"CAP_SYS_ADMIN", "CAP_SYS_MODULE"`),
			`asks for capability "CAP_SYS_MODULE"`,
		},
		"another folder of the host":   {config(`"source": "/etc/cvmfs"`, `"source": "/"`), "asks for mount"},
		"a folder that can be written": {config(`"ro"`, `"rw"`), "asks for mount"},
		"another device":               {config(`"/dev/fuse"`, `"/dev/mem"`), "asks for device"},
		"all devices": {
			config(`"devices"`, `"allowAllDevices": true, "devices"`),
			"unknown field \"allowAllDevices\"",
		},
		"the host's processes": {config(`"env"`, `"pidhost": true, "env"`), "unknown field \"pidhost\""},
		"another program":      {config(`"/bin/cvmfs-graphdriver-plugin"`, `"/bin/sh"`), "entrypoint is"},
		"a setting more": {
			config(`"env": [`, `"env": [{"name": "LD_PRELOAD", "settable": ["value"]}, `),
			"asks for env",
		},
		"config.json that is no JSON": {
			edit("config.json", func(h *header) { h.data = []byte("{") }),
			"config.json: unexpected end of JSON",
		},
	} {
		t.Run(name, func(t *testing.T) {
			archive := filepath.Join(t.TempDir(), "bundle.tar.gz")
			pack(t, archive, test.change(slices.Clone(whole)))
			_, err := Verify(archive, nil)
			if test.says == "" {
				if err != nil {
					t.Error(err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), test.says) {
				t.Errorf("got %v, want an error with %q", err, test.says)
			}
		})
	}
}

func withoutEntry(all []header, name string) []header {
	var rest []header
	for _, h := range all {
		if h.Name != name {
			rest = append(rest, h)
		}
	}
	return rest
}

func tooMany(all []header) []header {
	for i := range maxEntries {
		all = append(all, header{tar.Header{
			Typeflag: tar.TypeDir,
			Name:     fmt.Sprintf("cvmfs-graphdriver-plugin-1.2.3/%d/", i),
		}, nil})
	}
	return all
}

// A file with a hole is small in an archive and large when it is read.
func TestHolesCountAsContent(t *testing.T) {
	// of two digits in all
	record := func(key, value string) string { return fmt.Sprintf("%d %s=%s\n", len(key)+len(value)+5, key, value) }
	records := record("GNU.sparse.major", "1") + record("GNU.sparse.minor", "0") + record("GNU.sparse.realsize",
		"1099511627776") + record("GNU.sparse.name", "x/holes")
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	for _, file := range []struct {
		flag byte
		data string
	}{{tar.TypeXHeader, records}, {tar.TypeReg, "0\n" + strings.Repeat("\x00", 510)}} {
		var one bytes.Buffer
		w := tar.NewWriter(&one)
		if err := w.WriteHeader(&tar.Header{
			Typeflag: tar.TypeReg, Name: "x/holes", Mode: 0o644,
			Size: int64(len(file.data)), Format: tar.FormatUSTAR,
		}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(file.data)); err != nil {
			t.Fatal(err)
		}
		if err := w.Flush(); err != nil {
			t.Fatal(err)
		}
		block := one.Bytes()
		block[156] = file.flag
		copy(block[148:156], "        ")
		sum := 0
		for _, c := range block[:512] {
			sum += int(c)
		}
		copy(block[148:156], fmt.Sprintf("%06o\x00 ", sum))
		if _, err := z.Write(block); err != nil {
			t.Fatal(err)
		}
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(t.TempDir(), "holes.tar.gz")
	if err := os.WriteFile(name, b.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(name); err == nil || !strings.Contains(err.Error(), "larger than any bundle") {
		t.Errorf("got %v", err)
	}
}

func TestBrokenArchivesAreRefused(t *testing.T) {
	o := options(t)
	o.Formats = []Format{TarGz, TarZst}
	dir := built(t, o)
	for _, ending := range []string{".tar.gz", ".tar.zst"} {
		whole, err := os.ReadFile(filepath.Join(dir, "cvmfs-graphdriver-plugin-1.2.3-"+runtime.GOARCH+ending))
		if err != nil {
			t.Fatal(err)
		}
		flipped := bytes.Clone(whole)
		flipped[len(flipped)/2] ^= 0x10
		for what, packed := range map[string][]byte{
			"half of it": whole[:len(whole)/2], "all but its end": whole[:len(whole)-4], "a bit flipped": flipped,
			"something behind it": append(bytes.Clone(whole), "more"...), "its first bytes": whole[:4], "nothing": nil,
		} {
			name := filepath.Join(t.TempDir(), "bundle"+ending)
			if err := os.WriteFile(name, packed, 0o644); err != nil {
				t.Fatal(err)
			}
			if _, err := Open(name); err == nil || !strings.Contains(err.Error(), "open plugin bundle "+name) {
				t.Errorf("%s, %s: got %v", ending, what, err)
			}
		}
	}
}

func TestFoldersAreReadWithoutFollowingLinks(t *testing.T) {
	folder := filepath.Join(built(t, options(t)), "cvmfs-graphdriver-plugin-1.2.3")
	for what, link := range map[string]string{"rootfs/bin/sh": "/bin/sh", "rootfs/lib": "/lib"} {
		if err := os.Symlink(link, filepath.Join(folder, what)); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(folder); err == nil || !strings.Contains(err.Error(),
			what+" is neither a folder nor a file") {
			t.Errorf("%s: got %v", what, err)
		}
		if err := os.Remove(filepath.Join(folder, what)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := Open(folder); err != nil {
		t.Error(err)
	}
	if _, err := Open(filepath.Join(folder, "rootfs")); err == nil ||
		!strings.Contains(err.Error(), "has no config.json") {
		t.Errorf("got %v", err)
	}
	if _, err := Open(filepath.Join(folder, "config.json")); err == nil ||
		!strings.Contains(err.Error(), "neither a folder nor a .tar.gz") {
		t.Errorf("got %v", err)
	}
	if _, err := Open(folder + "-not"); err == nil || !strings.Contains(err.Error(), "no such file") {
		t.Errorf("got %v", err)
	}
}

func TestSumsAndSignatureTellWhatWasChanged(t *testing.T) {
	public, private := keys(t)
	other, _ := keys(t)
	change := func(name, old, with string) func(*testing.T, string) {
		return func(t *testing.T, dir string) {
			name := filepath.Join(dir, name)
			text, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Contains(text, []byte(old)) {
				t.Fatalf("%s hasn't got %q", name, old)
			}
			if err := os.WriteFile(name, bytes.Replace(text, []byte(old), []byte(with), 1), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	remove := func(names ...string) func(*testing.T, string) {
		return func(t *testing.T, dir string) {
			for _, name := range names {
				if err := os.Remove(filepath.Join(dir, name)); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	archive := "cvmfs-graphdriver-plugin-1.2.3-" + runtime.GOARCH + ".tar.gz"
	const folder = "cvmfs-graphdriver-plugin-1.2.3"
	for name, test := range map[string]struct {
		damage       func(*testing.T, string)
		key          *minisign.PublicKey
		archive, dir string // what is said of each
	}{
		"nothing":         {func(*testing.T, string) {}, &public, "", ""},
		"no key":          {func(*testing.T, string) {}, nil, "", ""},
		"no sums, no key": {remove(SumsName), nil, "", ""},
		"no sums":         {remove(SumsName), &public, "SHA256SUMS: no such file", "SHA256SUMS: no such file"},
		"no signature":    {remove(SignatureName), &public, "minisig: no such file", "minisig: no such file"},
		"another key": {
			func(*testing.T, string) {}, &other, "and not by the one given",
			"and not by the one given",
		},
		"a sum": {
			change(SumsName, "  "+folder+"/config.json", "  "+folder+"/x"), &public,
			"isn't a signature of SHA256SUMS", "isn't a signature of SHA256SUMS",
		},
		"the trusted comment": {change(SignatureName, "SHA256SUMS of cvmfs-graphdriver 1.2.3",
			"SHA256SUMS of cvmfs-graphdriver 1.2.4"), &public, "isn't a signature", "isn't a signature"},
		"a file of the folder": {
			change(folder+"/config.json", "maintainer", "Maintainer"), nil, "",
			"the SHA-256 of config.json is",
		},
		"the file is missing": {
			remove(folder + "/rootfs/usr/share/cvmfs-graphdriver/cvmfs/default.conf"), nil, "",
			"default.conf is missing",
		},
		"not listed": {change(SumsName, archive, "other"), nil, "", ""},
		"the archive's line": {
			change(SumsName, archive, "other"), &public, "isn't a signature",
			"isn't a signature",
		},
		"sums that can't be read": {
			change(SumsName, "  ", " . "), nil, "line 1 isn't one of sha256sum's",
			"line 1 isn't one of sha256sum's",
		},
		"a signature that is none": {
			change(SignatureName, "trusted comment", "comment"), &public, "invalid signature",
			"invalid signature",
		},
	} {
		t.Run(name, func(t *testing.T) {
			o := options(t)
			o.Key, o.Formats = &private, []Format{Folder, TarGz}
			dir := built(t, o)
			test.damage(t, dir)
			for bundle, says := range map[string]string{archive: test.archive, folder: test.dir} {
				v, err := Verify(filepath.Join(dir, bundle), test.key)
				switch {
				case says == "" && err != nil:
					t.Errorf("%s: %v", bundle, err)
				case says == "" && test.key != nil && v.Signer != fmt.Sprintf("%016X", public.ID()):
					t.Errorf("%s: signed by %q", bundle, v.Signer)
				case says != "" && (err == nil || !strings.Contains(err.Error(), says)):
					t.Errorf("%s: got %v, want an error with %q", bundle, err, says)
				}
			}
		})
	}
	t.Run("the archive", func(t *testing.T) {
		o := options(t)
		archive := archiveOf(t, o)
		pack(t, archive, unpack(t, archive))
		if _, err := Verify(archive, nil); err == nil || !strings.Contains(err.Error(),
			"the file was changed, or is another one") {
			t.Errorf("got %v", err)
		}
	})
}

// SHA256SUMS keeps what is there of the same version and of others' files; a signature is never that of another
// SHA256SUMS.
func TestSumsOfOneVersionAreKeptTogether(t *testing.T) {
	_, private := keys(t)
	o := options(t)
	o.Formats, o.Programs, o.Key = []Format{TarGz}, []string{small["amd64"](t)}, &private
	dir := built(t, o)
	for _, name := range []string{"other.deb", "cvmfs-graphdriver-plugin-1.2.3-rc1-amd64.tar.gz"} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	sums, err := os.OpenFile(filepath.Join(dir, SumsName), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	empty := "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
	fmt.Fprintf(sums, "%s  other.deb\n%[1]s  gone.deb\n%[1]s  cvmfs-graphdriver-plugin-1.2.3-rc1-amd64.tar.gz\n", empty)
	if err := sums.Close(); err != nil {
		t.Fatal(err)
	}
	o.Programs, o.Key = []string{small["arm64"](t)}, nil
	built(t, o)
	got, err := readSums(filepath.Join(dir, SumsName))
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]bool{
		"cvmfs-graphdriver-plugin-1.2.3-amd64.tar.gz": true, "cvmfs-graphdriver-plugin-1.2.3-arm64.tar.gz": true,
		"cvmfs-graphdriver-plugin-1.2.3-amd64.spdx.json": true, "other.deb": true, "gone.deb": false,
		"cvmfs-graphdriver-plugin-1.2.3-rc1-amd64.tar.gz": false,
	} {
		if _, is := got[name]; is != want {
			t.Errorf("%s is listed: %t", name, is)
		}
	}
	if _, err := os.Stat(filepath.Join(dir, SignatureName)); err == nil {
		t.Error("the signature of the former SHA256SUMS is still there")
	}
}

// The same key without and with a password, as minisign writes them. Making one with a password takes seconds.
const (
	plainKey     = "untrusted comment: minisign encrypted secret key\nRWQAAEIyAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA9V4XwnnxnnOGBjTanZnINVAo+YhOPCkbB82ncDALwHDf8Cn5n4IKiOT26Dq/vs7RjzQfo98ACNSoojyYFoT41/kUvY0wkPv2AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\n"
	encryptedKey = "untrusted comment: minisign encrypted secret key\nRWRTY0IyBB4JoXNFYI7MBzf6exnv+3jZhEREsaWHUWDbqe89ZqUAAAACAAAAAAAAAEAAAAAAQdeKUTukg5zqzcG/dNkRkLzTh5UtGzaS26X91DYdo182TYhsGuLQPe7j/KHR1oFi3rww5QfUK1cCBL8sWwTsLcdt+MNcdkgRJKL+ZMXBIdDDC9opro33/9XtjYxvgr7U/gOt0VeEs/4=\n"
)

func TestSigningKeysAreReadWithTheirPassword(t *testing.T) {
	read := func(text, password string) (*minisign.PrivateKey, error) {
		name := filepath.Join(t.TempDir(), "key")
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return ReadPrivateKey(name, func() (string, error) {
			if password == "" {
				return "", errors.New("no terminal")
			}
			return password, nil
		})
	}
	plain, err := read(plainKey, "")
	if err != nil {
		t.Fatal(err)
	}
	if key, err := read(encryptedKey, "secret"); err != nil || !key.Equal(*plain) {
		t.Errorf("got %v", err)
	}
	if _, err := read(encryptedKey, ""); err == nil || !strings.Contains(err.Error(), "no terminal") {
		t.Errorf("got %v", err)
	}
	if _, err := read("x", ""); err == nil || !strings.Contains(err.Error(), "read the signing key") {
		t.Errorf("got %v", err)
	}
	text, err := plain.Public().(minisign.PublicKey).MarshalText()
	name := filepath.Join(t.TempDir(), "key.pub")
	if err == nil {
		err = os.WriteFile(name, text, 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
	if got, err := ReadPublicKey(name); err != nil || !got.Equal(plain.Public()) {
		t.Errorf("got %v, %v", got, err)
	}
}

func TestSBOMIsSPDX(t *testing.T) {
	dir := built(t, options(t))
	text, err := os.ReadFile(filepath.Join(dir, "cvmfs-graphdriver-plugin-1.2.3-"+runtime.GOARCH+".spdx.json"))
	if err != nil {
		t.Fatal(err)
	}
	var d spdx.Document
	if err := json.Unmarshal(text, &d); err != nil {
		t.Fatal(err)
	}
	if err := spdxlib.ValidateDocument(&d); err != nil {
		t.Error(err)
	}
	if d.SPDXVersion != "SPDX-2.3" || d.CreationInfo.Created != "2020-09-13T12:26:40Z" ||
		!strings.HasPrefix(d.DocumentNamespace, "urn:uuid:") {
		t.Errorf("got %+v", d)
	}
	if len(d.Packages) != 2 || d.Packages[0].PackageVersion != "1.2.3" || d.Packages[1].PackageName != "stdlib" ||
		"go"+d.Packages[1].PackageVersion != runtime.Version() {
		t.Errorf("got %+v", d.Packages)
	}
	if len(d.Files) != 1 || d.Files[0].FileName != "./rootfs"+rootfs.Program {
		t.Errorf("got %+v", d.Files)
	}
}
