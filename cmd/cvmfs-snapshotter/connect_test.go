package main

import (
	"context"
	"net"
	"path/filepath"
	"testing"
	"time"

	imagesapi "github.com/containerd/containerd/api/services/images/v1"
	"google.golang.org/grpc"
)

// However long containerd has been away, it is found soon after it is there again: what asks meanwhile must not make
// the next pull wait, or fail.
func TestContainerdIsFoundSoonAfterItIsThereAgain(t *testing.T) {
	t.Parallel()
	socket := filepath.Join(t.TempDir(), "c")
	conn, err := connect(socket)
	must(t, err)
	t.Cleanup(func() { conn.Close() })
	client := imagesapi.NewImagesClient(conn)
	for end := time.Now().Add(6 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if _, err := client.List(t.Context(), &imagesapi.ListImagesRequest{}); err == nil {
			t.Fatal("there is a containerd")
		}
	}
	l, err := net.Listen("unix", socket)
	must(t, err)
	server := grpc.NewServer()
	imagesapi.RegisterImagesServer(server, noImages{})
	go server.Serve(l) // ends with the test
	t.Cleanup(server.Stop)
	began := time.Now()
	for {
		_, err := client.List(t.Context(), &imagesapi.ListImagesRequest{})
		if err == nil {
			break
		}
		if time.Since(began) > 2*time.Second { // 1.2 s; by default 4 s and more by now
			t.Fatal(err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

type noImages struct {
	imagesapi.UnimplementedImagesServer
}

func (noImages) List(context.Context, *imagesapi.ListImagesRequest) (*imagesapi.ListImagesResponse, error) {
	return &imagesapi.ListImagesResponse{}, nil
}
