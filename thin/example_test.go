package thin_test

import (
	"fmt"
	"log"
	"os"

	"cvmfs-graphdriver/thin"
)

// What a converter writes: the layers of an image, bottom to top, and where each lies.
func ExampleDescriptor_Encode() {
	d := &thin.Descriptor{
		Origin: "https://registry.example.org/library/debian:12",
		Layers: []thin.Layer{{
			Digest: "6d0d9ac2a4a5b6b0e5a0ff1b3f6a9c1e5d0f3b8a7c6d5e4f3a2b1c0d9e8f7a6b",
			FQRN:   "unpacked.example.org",
			Path:   "/layers/6d0d9ac2a4a5b6b0e5a0ff1b3f6a9c1e5d0f3b8a7c6d5e4f3a2b1c0d9e8f7a6b",
			DiffID: "1b3f6a9c1e5d0f3b8a7c6d5e4f3a2b1c0d9e8f7a6b6d0d9ac2a4a5b6b0e5a0ff",
			Size:   48497406,
		}},
	}
	b, err := d.Encode()
	if err != nil {
		log.Fatal(err)
	}
	os.Stdout.Write(b)
	// Output:
	// {
	//   "version": "1.1",
	//   "origin": "https://registry.example.org/library/debian:12",
	//   "layers": [
	//     {
	//       "digest": "6d0d9ac2a4a5b6b0e5a0ff1b3f6a9c1e5d0f3b8a7c6d5e4f3a2b1c0d9e8f7a6b",
	//       "url": "cvmfs://unpacked.example.org/layers/6d0d9ac2a4a5b6b0e5a0ff1b3f6a9c1e5d0f3b8a7c6d5e4f3a2b1c0d9e8f7a6b",
	//       "diff_id": "1b3f6a9c1e5d0f3b8a7c6d5e4f3a2b1c0d9e8f7a6b6d0d9ac2a4a5b6b0e5a0ff",
	//       "size": 48497406
	//     }
	//   ]
	// }
}

// What a driver reads. The descriptor comes from a registry: whether the host trusts the repository is decided
// elsewhere.
func ExampleParse() {
	d, err := thin.Parse([]byte(`{
		"version": "1.0",
		"origin": "https://registry.example.org/library/debian:12",
		"layers": [{
			"digest": "6d0d9ac2a4a5b6b0e5a0ff1b3f6a9c1e5d0f3b8a7c6d5e4f3a2b1c0d9e8f7a6b",
			"url": "cvmfs://unpacked.example.org/layers/6d"
		}]
	}`))
	if err != nil {
		log.Fatal(err)
	}
	for _, l := range d.Layers {
		fmt.Println(l.FQRN, l.Path)
	}

	_, err = thin.Parse([]byte(`{
		"version": "1.0",
		"layers": [{
			"digest": "6d0d9ac2a4a5b6b0e5a0ff1b3f6a9c1e5d0f3b8a7c6d5e4f3a2b1c0d9e8f7a6b",
			"url": "cvmfs://unpacked.example.org/../etc"
		}]
	}`))
	fmt.Println(err)
	// Output:
	// unpacked.example.org /layers/6d
	// thin.json: layer 0: url "cvmfs://unpacked.example.org/../etc": path has the component ".."
}
