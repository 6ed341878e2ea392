package fusewire

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"runtime"
	"runtime/debug"
	"slices"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Forever is the validity of what never changes.
const Forever = 24 * time.Hour

// Attr is what stat(2) shows of a node.
type Attr struct {
	Mode     uint32 // type and permission bits
	Size     int64
	Ino      uint64 // inode number; 0: the node's id
	Links    uint32 // 0: one, or two of a folder
	UID, GID uint32
	Mtime    int64 // seconds since 1970; ctime and atime are the same
	MtimeN   uint32
	Rdev     uint64 // of a device, as st_rdev
}

// Entry is a name's answer: the node it stands for.
type Entry struct {
	Node  uint64 // 0: there is no such name, which the kernel may remember (unlike an errno of ENOENT)
	Attr  Attr
	Valid time.Duration // how long the kernel need not ask again, for the name and the attributes; whole seconds
}

// Handler answers requests. Methods are called concurrently. Slices are valid until the method returns. An errno of
// ENOENT is not remembered by the kernel.
type Handler interface {
	// Blocks reports whether this request may have to wait for something. It must not wait itself. The context of a
	// request that does not block is never cancelled.
	Blocks(op Op, node uint64) bool
	// Lookup finds a name in a folder.
	Lookup(ctx context.Context, folder uint64, name []byte) (Entry, syscall.Errno)
	// Getattr is asked again after Forever.
	Getattr(ctx context.Context, node uint64) (Attr, syscall.Errno)
	// Read fills p from off on. Less than len(p) bytes mean that the file ends there.
	Read(ctx context.Context, node uint64, p []byte, off int64) (int, syscall.Errno)
	// Readdir lists a folder from the entry with number from on, in an order that stays, "." and ".." included; it ends
	// when add says false.
	Readdir(ctx context.Context, node, from uint64, add func(name string, e Entry) bool) syscall.Errno
}

// Tree is what a Handler answers besides, whose tree has more than folders and plain files. An errno of ENOSYS would
// make the kernel never ask again, for any node.
type Tree interface {
	Handler
	// Readlink returns the target of a symbolic link, which the kernel keeps.
	Readlink(ctx context.Context, node uint64) (string, syscall.Errno)
	// Getxattr returns the value of an extended attribute; ENODATA if there is none.
	Getxattr(ctx context.Context, node uint64, name string) ([]byte, syscall.Errno)
	// Listxattr returns the names of the extended attributes.
	Listxattr(ctx context.Context, node uint64) ([]string, syscall.Errno)
}

// Prompt is what a Handler answers besides that can tell which reads need not wait: they are answered by who has read
// the request, which spares it a goroutine, and often the wake-up of a thread.
type Prompt interface {
	Handler
	// ReadNow is Read if that doesn't wait. Otherwise it returns false, and nothing has happened.
	ReadNow(node uint64, p []byte, off int64) (n int, done bool)
}

// Config says how to serve; all fields but Init may be left out.
type Config struct {
	Init    Init          // outcome of the handshake
	Journal *os.File      // from NewJournal: requests survive this process there
	Readers int           // goroutines that read requests; 4
	Blocked int           // requests that may block at once, others wait for their turn; 1024
	Grace   time.Duration // how long a request goes on at least after an interrupt; 500 ms
	Log     *slog.Logger
}

// Serve answers requests until the device is unmounted; it then waits for the requests under way, whose contexts are
// cancelled, and returns nil. There is no other way to stop it but to end the process: what it leaves unanswered waits
// for the successor.
func Serve(dev *os.File, h Handler, cfg Config) error {
	defer runtime.KeepAlive(dev) // it is used by number: collected, it would be closed under us
	s := &server{
		fd: int(dev.Fd()), handler: h, init: cfg.Init, grace: cfg.Grace, room: cfg.Blocked, log: cfg.Log,
		calls: map[uint64]*call{},
	}
	s.tree, _ = h.(Tree)
	s.prompt, _ = h.(Prompt)
	readers := cfg.Readers
	if readers <= 0 {
		readers = 4
	}
	if s.room <= 0 {
		s.room = 1024
	}
	if s.grace <= 0 {
		s.grace = 500 * time.Millisecond
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	var cancel context.CancelFunc
	s.ctx, cancel = context.WithCancel(context.Background())
	defer cancel()
	if cfg.Journal != nil {
		j, left, err := openJournal(cfg.Journal)
		if err != nil {
			return err
		}
		defer unix.Munmap(j.mem) // the mapping is ours
		s.journal = j
		s.replay(left)
	}
	errs := make([]error, readers)
	var reading sync.WaitGroup
	for i := range errs {
		reading.Go(func() { errs[i] = s.read() })
	}
	reading.Wait()
	cancel()
	s.under.Wait()
	return errors.Join(errs...)
}

// server is one life of Serve.
type server struct {
	fd      int
	handler Handler
	tree    Tree   // the handler; nil if it is no Tree
	prompt  Prompt // so
	init    Init
	journal *journal // nil: requests are kept on the heap
	grace   time.Duration
	log     *slog.Logger
	ctx     context.Context // ends with Serve
	under   sync.WaitGroup  // goroutines that may touch the device or the journal
	buffers sync.Pool       // of *[]byte: replies to READ that grew

	mu      sync.Mutex
	calls   map[uint64]*call // requests that may block, by unique number without resentBit
	room    int              // how many more may run
	waiting []*call          // those that have no room
}

// call is a request that may block.
type call struct {
	h      header
	arg    []byte
	slot   int // in the journal
	ctx    context.Context
	cancel context.CancelFunc
}

// replay answers what a predecessor has left in the journal.
func (s *server) replay(left []int) {
	out := make([]byte, outHeaderSize+512)
	for _, i := range left {
		s.handle(s.journal.slot(i), i, &out)
	}
	if len(left) > 0 {
		s.log.Info("FUSE requests left by the former server", "requests", len(left))
	}
}

// read reads requests until the device is gone.
func (s *server) read() error {
	buf, slot := []byte(nil), 0
	if s.journal == nil {
		// Every page is brought in: were we killed while the kernel brings one in to write a request, it would fail the
		// request.
		buf = make([]byte, requestSize)
		clear(buf)
	}
	out := make([]byte, outHeaderSize+512) // replies but those to READ and READDIR are shorter
	for {
		if s.journal != nil {
			slot = s.journal.take()
			buf = s.journal.slot(slot)
		}
		n, err := unix.Read(s.fd, buf)
		if err == nil {
			s.handle(buf[:n], slot, &out)
			continue
		}
		if s.journal != nil {
			s.journal.release(slot)
		}
		switch err {
		case unix.EINTR, unix.EAGAIN, unix.ENOENT: // ENOENT: the request was aborted meanwhile
		case unix.ENODEV, unix.ECONNABORTED:
			return nil
		default:
			return fmt.Errorf("read FUSE requests: %w", err)
		}
	}
}

// handle answers a request or hands it to a goroutine. out is memory for the reply.
func (s *server) handle(b []byte, slot int, out *[]byte) {
	h, arg, err := parseRequest(b)
	if err != nil {
		s.log.Error("bad request from the kernel", "err", err)
		s.done(slot)
		return
	}
	switch {
	case h.op == OpForget || h.op == OpBatchForget:
	case h.op == OpInterrupt:
		s.interrupt(h, arg)
	case h.op == OpRead && s.readNow(h, arg, out):
	case s.handler.Blocks(h.op, h.node):
		s.dispatch(h, arg, slot)
		return
	default:
		s.reply(s.ctx, h, arg, out)
	}
	s.done(slot)
}

// done empties the journal's slot of a request.
func (s *server) done(slot int) {
	if s.journal != nil {
		s.journal.release(slot)
	}
}

// dispatch lets a request that may block run in a goroutine, as soon as there is room.
func (s *server) dispatch(h header, arg []byte, slot int) {
	if s.journal == nil {
		arg = slices.Clone(arg) // the reader goes on with its buffer
	}
	c := &call{h: h, arg: arg, slot: slot}
	c.ctx, c.cancel = context.WithCancel(s.ctx)
	s.under.Add(1)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.calls[h.unique&^resentBit] = c
	if s.room == 0 {
		s.waiting = append(s.waiting, c)
		return
	}
	s.room--
	go s.work(c)
}

// work runs a call and then those that wait for room.
func (s *server) work(c *call) {
	for c != nil {
		out := s.buffer(c.h.op)
		s.reply(c.ctx, c.h, c.arg, out)
		s.forget(c)
		if c.h.op == OpRead {
			s.buffers.Put(out)
		}
		c = s.next()
	}
}

// buffer is memory for the reply to a request that may block; only those of READ are worth keeping.
func (s *server) buffer(op Op) *[]byte {
	if op == OpRead {
		if b, ok := s.buffers.Get().(*[]byte); ok {
			return b
		}
	}
	b := make([]byte, outHeaderSize+entryOutSize)
	return &b
}

// next takes the call that has waited longest, or gives the room back.
func (s *server) next() *call {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.waiting) == 0 {
		s.room++
		return nil
	}
	c := s.waiting[0]
	s.waiting = s.waiting[1:]
	return c
}

// forget ends a call that was replied to.
func (s *server) forget(c *call) {
	c.cancel()
	s.mu.Lock()
	delete(s.calls, c.h.unique&^resentBit)
	s.mu.Unlock()
	s.done(c.slot)
	s.under.Done()
}

// interrupt gives the request that arg names its grace time. One we don't know is about to be answered, or read but
// not yet entered by another reader; EAGAIN makes the kernel send the interrupt again if the request still waits.
func (s *server) interrupt(h header, arg []byte) {
	if len(arg) < 8 {
		return
	}
	s.mu.Lock()
	c := s.calls[native.Uint64(arg)&^resentBit]
	s.mu.Unlock()
	if c != nil {
		time.AfterFunc(s.grace, func() { s.abortIfDying(c) })
		return
	}
	s.under.Add(1)
	time.AfterFunc(10*time.Millisecond, func() {
		defer s.under.Done()
		out := make([]byte, outHeaderSize)
		unix.Write(s.fd, out[:putReply(out, h.unique, 0, syscall.EAGAIN)]) // ENOENT: it is answered
	})
}

// abortIfDying cancels a call unless the thread that waits for it is seen to live. The kernel sends one interrupt for
// each request, whatever signals follow: so such a thread is looked at until its call has ended.
func (s *server) abortIfDying(c *call) {
	switch {
	case c.ctx.Err() != nil: // answered, or there is nobody left to answer to
	case fate(c.h.thread) == lives:
		time.AfterFunc(s.grace, func() { s.abortIfDying(c) })
	default:
		s.abort(c)
	}
}

// abort cancels a call; one that still waits for room is answered at once.
func (s *server) abort(c *call) {
	c.cancel()
	s.mu.Lock()
	i := slices.Index(s.waiting, c)
	if i >= 0 {
		s.waiting = slices.Delete(s.waiting, i, i+1)
	}
	s.mu.Unlock()
	if i >= 0 {
		out := make([]byte, outHeaderSize)
		s.send(c.h, out[:putReply(out, c.h.unique, 0, syscall.EINTR)])
		s.forget(c)
	}
}

// readNow answers a READ that need not wait. It reports whether it has.
func (s *server) readNow(h header, arg []byte, out *[]byte) (done bool) {
	if s.prompt == nil {
		return false
	}
	off, size, errno := readArg(arg)
	if errno != 0 {
		return false
	}
	n := 0
	defer func() {
		if p := recover(); p != nil { // asked again it may panic again, and fails
			s.panicked(h, p)
		}
		if done {
			s.send(h, (*out)[:putReply(*out, h.unique, outHeaderSize+n, 0)])
		}
	}()
	grow(out, outHeaderSize+size)
	n, done = s.prompt.ReadNow(h.node, (*out)[outHeaderSize:outHeaderSize+size], int64(off))
	return done
}

// reply answers a request. A handler that panics costs its request an EIO: were it to end the process, the next server
// would get the same request.
func (s *server) reply(ctx context.Context, h header, arg []byte, out *[]byte) {
	n, errno := 0, syscall.EIO
	defer func() {
		if p := recover(); p != nil {
			s.panicked(h, p)
		}
		s.send(h, (*out)[:putReply(*out, h.unique, n, errno)])
	}()
	n, errno = s.answer(ctx, h, arg, out)
}

func (s *server) panicked(h header, p any) {
	s.log.Error("FUSE request failed", "op", h.op, "node", h.node, "panic", p, "stack", string(debug.Stack()))
}

func (s *server) send(h header, reply []byte) {
	_, err := unix.Write(s.fd, reply)
	switch err {
	case nil:
	case unix.ENOENT, unix.ENODEV: // nobody waits any more
	default:
		s.log.Error("reply to FUSE request", "op", h.op, "node", h.node, "bytes", len(reply), "err", err)
	}
}

// answer writes the body of the reply behind the place of its header and gives the length of both.
func (s *server) answer(ctx context.Context, h header, arg []byte, out *[]byte) (int, syscall.Errno) {
	body := (*out)[outHeaderSize:]
	switch h.op {
	case OpLookup:
		name, errno := nameArg(arg)
		if errno != 0 {
			return 0, errno
		}
		e, errno := s.handler.Lookup(ctx, h.node, name)
		if errno != 0 {
			return 0, errno
		}
		putEntry(body, e)
		return outHeaderSize + entryOutSize, 0
	case OpGetattr:
		a, errno := s.handler.Getattr(ctx, h.node)
		clear(body[:16])
		native.PutUint64(body, uint64(Forever/time.Second))
		putAttr(body[16:], h.node, a)
		return outHeaderSize + attrOutSize, errno
	case OpRead:
		return s.answerRead(ctx, h, arg, out)
	case OpReaddir, OpReaddirplus:
		return s.answerReaddir(ctx, h, arg, out)
	case OpStatfs:
		putStatfs(body)
		return outHeaderSize + statfsOutSize, 0
	case OpOpen, OpOpendir:
		return s.answerOpen(h, body)
	case OpRelease, OpReleasedir, OpDestroy:
		return outHeaderSize, 0
	case OpReadlink, OpGetxattr, OpListxattr:
		if s.tree != nil {
			return s.answerTree(ctx, h, arg, out)
		}
	}
	return 0, syscall.ENOSYS
}

func (s *server) answerTree(ctx context.Context, h header, arg []byte, out *[]byte) (int, syscall.Errno) {
	if h.op == OpReadlink {
		target, errno := s.tree.Readlink(ctx, h.node)
		return putBytes(out, target), errno
	}
	size, rest, errno := sizeArg(arg)
	if errno != 0 {
		return 0, errno
	}
	var value []byte
	if h.op == OpGetxattr {
		name, errno := nameArg(rest)
		if errno != 0 {
			return 0, errno
		}
		if value, errno = s.tree.Getxattr(ctx, h.node, string(name)); errno != 0 {
			return 0, errno
		}
	} else {
		names, errno := s.tree.Listxattr(ctx, h.node)
		if errno != 0 {
			return 0, errno
		}
		for _, name := range names {
			value = append(append(value, name...), 0)
		}
	}
	switch {
	case size == 0: // only how long it is
		value = native.AppendUint64(nil, uint64(len(value)))
	case len(value) > size:
		return 0, syscall.ERANGE
	}
	return putBytes(out, string(value)), 0
}

// putBytes writes the body of a reply that is just bytes, and gives the reply's length.
func putBytes(out *[]byte, b string) int {
	grow(out, outHeaderSize+len(b))
	return outHeaderSize + copy((*out)[outHeaderSize:], b)
}

func (s *server) answerRead(ctx context.Context, h header, arg []byte, out *[]byte) (int, syscall.Errno) {
	off, size, errno := readArg(arg)
	if errno != 0 {
		return 0, errno
	}
	grow(out, outHeaderSize+size)
	n, errno := s.handler.Read(ctx, h.node, (*out)[outHeaderSize:outHeaderSize+size], int64(off))
	return outHeaderSize + n, errno
}

func (s *server) answerReaddir(ctx context.Context, h header, arg []byte, out *[]byte) (int, syscall.Errno) {
	off, size, errno := readArg(arg)
	if errno != 0 {
		return 0, errno
	}
	grow(out, outHeaderSize+size)
	body := (*out)[outHeaderSize : outHeaderSize+size]
	w := direntWriter{out: body[:0:size], next: off, plus: h.op == OpReaddirplus}
	errno = s.handler.Readdir(ctx, h.node, off, w.add)
	return outHeaderSize + len(w.out), errno
}

// answerOpen makes the kernel open without us from now on; one that can't is granted the open.
func (s *server) answerOpen(h header, body []byte) (int, syscall.Errno) {
	flag := uint64(flagNoOpen)
	if h.op == OpOpendir {
		flag = flagNoOpendir
	}
	if s.init.Has(flag) {
		return 0, syscall.ENOSYS
	}
	clear(body[:openOutSize])
	native.PutUint32(body[8:], 1<<1) // FOPEN_KEEP_CACHE
	return outHeaderSize + openOutSize, 0
}

// grow makes *out at least n bytes long.
func grow(out *[]byte, n int) {
	if len(*out) < n {
		*out = make([]byte, n)
	}
}
