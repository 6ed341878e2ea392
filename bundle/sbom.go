package bundle

import (
	"bytes"
	"crypto/sha256"
	"debug/buildinfo"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/google/uuid"
	"github.com/spdx/tools-golang/spdx/v2/common"
	spdx "github.com/spdx/tools-golang/spdx/v2/v2_3"
)

// noAssertion is what SPDX has us say where the program doesn't tell.
const noAssertion = "NOASSERTION"

// Elements of the document, besides the modules.
const (
	documentElement common.ElementID = "DOCUMENT"
	pluginElement   common.ElementID = "Package-plugin"
	programElement  common.ElementID = "File-program"
	goElement       common.ElementID = "Package-go"
)

// SBOM lists what the bundle's program is made of, as an SPDX 2.3 document in JSON: the Go modules with their versions
// and the sums that go.sum has of them, and Go itself, all as the program tells by its build information.
func (b *Bundle) SBOM() ([]byte, error) {
	info, err := buildinfo.Read(bytes.NewReader(b.Program()))
	if err != nil {
		return nil, fmt.Errorf("make the SBOM: the plugin's program doesn't tell its modules: %w", err)
	}
	d := b.newSBOM()
	d.add(pluginElement, "cvmfs-graphdriver-plugin", b.Build.Version, "Apache-2.0",
		strings.TrimSpace("commit "+b.Build.Commit), "")
	d.link(documentElement, common.TypeRelationshipDescribe, pluginElement)
	d.link(pluginElement, common.TypeRelationshipContains, programElement)
	version := strings.TrimPrefix(info.GoVersion, "go")
	d.add(goElement, "stdlib", version, "BSD-3-Clause", "Go's standard library and runtime", "pkg:golang/stdlib@"+version)
	d.link(programElement, common.TypeRelationshipStaticLink, goElement)
	for i, m := range info.Deps {
		if m.Replace != nil {
			m = m.Replace
		}
		id := common.ElementID(fmt.Sprintf("Package-module-%03d", i+1))
		d.add(id, m.Path, m.Version, noAssertion, strings.TrimSpace("go.sum "+m.Sum), "pkg:golang/"+m.Path+"@"+m.Version)
		d.link(programElement, common.TypeRelationshipStaticLink, id)
	}
	text, err := json.MarshalIndent(d.Document, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("make the SBOM: %w", err)
	}
	return append(text, '\n'), nil
}

// sbom is a document on its way.
type sbom struct{ spdx.Document }

// newSBOM begins the document: what it is about, when and by what it was made, and the program as a file.
func (b *Bundle) newSBOM() *sbom {
	sum := sha256.Sum256(b.Program())
	name := b.Name() + "-" + b.Build.Arch
	return &sbom{spdx.Document{
		SPDXVersion: spdx.Version, DataLicense: spdx.DataLicense, SPDXIdentifier: documentElement, DocumentName: name,
		DocumentNamespace: "urn:uuid:" + uuid.NewSHA1(uuid.NameSpaceURL,
			fmt.Appendf(nil, "cvmfs-graphdriver:%s:%x", name, sum)).String(),
		CreationInfo: &spdx.CreationInfo{
			Creators: []common.Creator{{CreatorType: "Tool", Creator: "cvmfs-graphdriver-" + b.Build.Version}},
			Created:  b.Build.Time.Format("2006-01-02T15:04:05Z"),
		},
		Files: []*spdx.File{{
			FileSPDXIdentifier: programElement, FileName: "./" + programName, FileTypes: []string{"BINARY"},
			Checksums:        []common.Checksum{{Algorithm: common.SHA256, Value: hex.EncodeToString(sum[:])}},
			LicenseConcluded: noAssertion, FileCopyrightText: noAssertion,
		}},
	}}
}

// link says what one element is to another.
func (d *sbom) link(from common.ElementID, kind string, to common.ElementID) {
	d.Relationships = append(d.Relationships, &spdx.Relationship{
		RefA: common.DocElementID{ElementRefID: from}, Relationship: kind,
		RefB: common.DocElementID{ElementRefID: to},
	})
}

// add lists a package; purl is its address for package managers, or "".
func (d *sbom) add(id common.ElementID, name, version, license, origin, purl string) {
	p := &spdx.Package{
		PackageSPDXIdentifier: id, PackageName: name, PackageVersion: version, PackageDownloadLocation: noAssertion,
		PackageLicenseConcluded: noAssertion, PackageLicenseDeclared: license, PackageCopyrightText: noAssertion,
		PackageSourceInfo: origin,
	}
	if purl != "" {
		p.PackageExternalReferences = []*spdx.PackageExternalReference{{
			Category: common.CategoryPackageManager, RefType: common.TypePackageManagerPURL, Locator: purl,
		}}
	}
	d.Packages = append(d.Packages, p)
}
