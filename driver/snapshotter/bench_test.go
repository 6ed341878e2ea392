package snapshotter

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"testing"

	api "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/proxy"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

const many = 5000

func name(n int) string { return fmt.Sprintf("moby/%d/sha256:%064d", n, n) }

// BenchmarkQuestions asks, through the socket, about one of many snapshots, and about all.
func BenchmarkQuestions(b *testing.B) {
	s := &Snapshotter{table: table{names: map[string]*snapshot{}}}
	for n := range many {
		sn := &snapshot{committed: true, record: newRecord(name(n), map[string]string{
			"containerd.io/snapshot.ref": fmt.Sprintf("sha256:%064d", n),
		})}
		if n%10 > 0 {
			sn.parent = s.table.names[name(n-1)]
		}
		s.table.names[sn.Name] = sn
	}
	client := serve(b, s)
	b.Run("Stat", func(b *testing.B) {
		for n := range b.N {
			if _, err := client.Stat(b.Context(), name(n%many)); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("Walk", func(b *testing.B) {
		for range b.N {
			all := 0
			err := client.Walk(b.Context(), func(context.Context, snapshots.Info) error { all++; return nil })
			if err != nil || all != many {
				b.Fatal(all, err)
			}
		}
	})
}

// serve returns containerd's side of a socket to a snapshotter.
func serve(b *testing.B, s *Snapshotter) snapshots.Snapshotter {
	b.Helper()
	socket := filepath.Join(b.TempDir(), "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		b.Fatal(err)
	}
	server := NewServer(slog.New(slog.DiscardHandler))
	server.Ready(s, nil)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error)
	go func() { ended <- server.Serve(ctx, l) }()
	conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		conn.Close()
		cancel()
		if err := <-ended; err != nil {
			b.Error(err)
		}
	})
	return proxy.NewSnapshotter(api.NewSnapshotsClient(conn), "cvmfs")
}
