package archtest

import (
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"cvmfs-graphdriver/test/testutil"
)

// Package layers says what shows a layer, and others mount it: so a second face has no other way than the first.
func TestLayersMountNothing(t *testing.T) {
	files, err := filepath.Glob(filepath.Join(testutil.Root(t), "driver/layers/*.go"))
	if err != nil {
		t.Fatal(err)
	}
	names := 0
	for _, name := range files {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		file, err := parser.ParseFile(token.NewFileSet(), name, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(file, func(n ast.Node) bool {
			s, ok := n.(*ast.SelectorExpr)
			if !ok {
				return true
			}
			if x, ok := s.X.(*ast.Ident); ok {
				names++
				if mounts(x.Name, s.Sel.Name) {
					t.Errorf("%s uses %s.%s", name, x.Name, s.Sel.Name)
				}
			}
			return true
		})
	}
	if names < 100 {
		t.Errorf("%d names were looked at", names)
	}
}

// mounts reports whether a name of a package is there to mount something.
func mounts(pkg, name string) bool {
	switch pkg {
	case "unix", "syscall":
		return slices.Contains([]string{
			"Mount", "Unmount", "MountSetattr", "Fsopen", "Fsconfig", "Fsmount", "OpenTree", "MoveMount",
			"SYS_MOUNT", "SYS_UMOUNT2", "SYS_FSOPEN", "SYS_FSCONFIG", "SYS_FSMOUNT", "SYS_MOVE_MOUNT",
		}, name)
	case "overlayfs":
		return !strings.HasPrefix(name, "Xattr")
	case "exec", "fusewire":
		return true
	}
	return false
}

func TestMountsAreFound(t *testing.T) {
	for name, want := range map[string]bool{
		"unix.Mount": true, "unix.Fsopen": true, "overlayfs.Kernel": true, "overlayfs.XattrOpaque": false,
		"unix.Renameat2": false, "exec.Command": true,
	} {
		pkg, sel, _ := strings.Cut(name, ".")
		if mounts(pkg, sel) != want {
			t.Errorf("%s: mounts %t", name, !want)
		}
	}
}
