package client_test

import (
	"context"
	"fmt"
	"io"
	"log"

	"cvmfs-graphdriver/cvmfs/client"
	"cvmfs-graphdriver/cvmfs/config"
)

// A file of a repository is read as a host is configured to read it: from the servers and through the proxies that its
// /etc/cvmfs names, and only if one of its keys vouches for it.
func Example() {
	etc, cache, stop := exampleHost()
	defer stop()

	ctx := context.Background()
	repositories := client.NewRepositories(config.Folder{Dir: etc}, nil, client.Options{
		Dir:       cache,
		UserAgent: "example/1.0",
	})
	repository, err := repositories.Repository("features.example.org")
	if err != nil {
		log.Fatal(err)
	}
	revision, err := repository.Newest(ctx)
	if err != nil {
		log.Fatal(err)
	}
	entry, err := revision.Lookup(ctx, "/later/file")
	if err != nil {
		log.Fatal(err)
	}
	content, err := revision.Open(ctx, "/later/file", entry)
	if err != nil {
		log.Fatal(err)
	}
	defer content.Close()
	b, err := io.ReadAll(content)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("revision %d: %d bytes, %q\n", revision.Number, entry.Size, b)
	// Output:
	// revision 4: 4 bytes, "new\n"
}

// Walk meets a folder before what is in it, in the order of names, across all catalogs. What has the same Link is one
// file.
func ExampleRevision_Walk() {
	etc, cache, stop := exampleHost()
	defer stop()

	ctx := context.Background()
	site, err := config.Folder{Dir: etc}.Load("features.example.org")
	if err != nil {
		log.Fatal(err)
	}
	repository, err := client.Open(site, client.Options{Dir: cache})
	if err != nil {
		log.Fatal(err)
	}
	revision, err := repository.Newest(ctx)
	if err != nil {
		log.Fatal(err)
	}
	err = revision.Walk(ctx, "/hard", func(n *client.Node) error {
		fmt.Printf("%06o %s, names: %d\n", n.Mode, n.Path, n.Nlink)
		return nil
	})
	if err != nil {
		log.Fatal(err)
	}
	// Output:
	// 040755 /hard, names: 2
	// 100644 /hard/big, names: 2
	// 100644 /hard/big-again, names: 2
	// 100644 /hard/one, names: 3
	// 100644 /hard/three, names: 3
	// 100644 /hard/two, names: 3
}
