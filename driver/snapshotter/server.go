package snapshotter

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"path"
	"time"

	diffapi "github.com/containerd/containerd/api/services/diff/v1"
	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/contrib/diffservice"
	"github.com/containerd/containerd/v2/contrib/snapshotservice"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// drainTime is how long calls may go on after the server was told to end.
const drainTime = 7 * time.Second

// Server answers containerd. It takes connections at once: who waits for a second in vain to be greeted gives up for
// some. Calls wait until there is a snapshotter.
type Server struct {
	log   *slog.Logger
	grpc  *grpc.Server
	ready chan struct{} // closed when the services may be called
	service
	differ
}

// service and differ are what is called.
type (
	service struct{ snapshotsapi.SnapshotsServer }
	differ  struct{ diffapi.DiffServer }
)

// NewServer makes a server.
func NewServer(log *slog.Logger) *Server {
	s := &Server{log: log, ready: make(chan struct{})}
	s.grpc = grpc.NewServer(grpc.UnaryInterceptor(s.unary), grpc.StreamInterceptor(s.stream))
	snapshotsapi.RegisterSnapshotsServer(s.grpc, &s.service)
	diffapi.RegisterDiffServer(s.grpc, &s.differ)
	return s
}

// Ready has a snapshotter answer from now on, and its differ. It can be called once.
func (s *Server) Ready(sn *Snapshotter, d *Differ) {
	s.service = service{snapshotservice.FromSnapshotter(sn)}
	s.differ = differ{diffservice.FromApplierAndComparer(d, d)}
	close(s.ready)
}

// Serve answers calls that come in on a listener until ctx ends; calls under way then have a few seconds to finish.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	ended := make(chan error, 1)
	go func() { ended <- s.grpc.Serve(l) }()
	select {
	case err := <-ended:
		return fmt.Errorf("serve containerd: %w", err)
	case <-ctx.Done():
	}
	defer time.AfterFunc(drainTime, s.grpc.Stop).Stop()
	s.grpc.GracefulStop()
	return nil
}

// wait waits until there is a snapshotter.
func (s *Server) wait(ctx context.Context) error {
	select {
	case <-s.ready:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (s *Server) unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, call grpc.UnaryHandler) (any, error) {
	began := time.Now()
	err := s.wait(ctx)
	var answer any
	if err == nil {
		answer, err = call(ctx, req)
	}
	s.note(info.FullMethod, req, began, err)
	return answer, err
}

func (s *Server) stream(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, call grpc.StreamHandler) error {
	began := time.Now()
	err := s.wait(stream.Context())
	if err == nil {
		err = call(srv, stream)
	}
	s.note(info.FullMethod, nil, began, err)
	return err
}

// note writes a call down. What is wrong with a question is for who asks.
func (s *Server) note(method string, req any, began time.Time, err error) {
	level := slog.LevelDebug
	switch status.Code(err) {
	case codes.Unknown, codes.Internal, codes.Unavailable:
		level = slog.LevelError
	}
	attrs := []any{"method", path.Base(method), "took", time.Since(began)}
	if named, ok := req.(interface{ GetKey() string }); ok {
		attrs = append(attrs, "key", named.GetKey())
	}
	if err != nil {
		attrs = append(attrs, "err", err)
	}
	s.log.Log(context.Background(), level, "call", attrs...)
}
