package installer

import (
	"archive/tar"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/docker/docker/api/types"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"cvmfs-graphdriver/test/testutil"
)

// fakeEngine is an engine behind a socket, as far as an installer has to do with one: it has plugins, reads its
// configuration file when it starts, and doesn't start on a plugin that it doesn't have or that is disabled. Its
// containers write what they are told, and what they say is lost.
type fakeEngine struct {
	t      testing.TB
	socket string
	file   string
	root   string

	mu        sync.Mutex
	up        bool
	driver    string
	remapped  bool
	plugins   map[string]*types.Plugin
	elsewhere map[string]map[string]*types.Plugin // in other data folders
	images    map[string]int                      // how many of each storage driver
	broken    map[string]bool                     // descriptions of plugins that the engine doesn't start on
	silent    map[string]bool                     // and of those on which containers fail
	damaged   map[string]bool                     // ids of plugins that can't be enabled until they are put anew
	running   map[string]bool                     // containers, by their ids
	word      string                              // argument of the last container
	starts    int
	known     func() bool // whether the snapshotter can be used; nil: there is none
	fails     string      // request that fails, as in "POST /plugins/create"
	asked     []string
}

func newFakeEngine(t testing.TB) *fakeEngine {
	dir, err := os.MkdirTemp("", "fake-") // a socket's path is short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	f := &fakeEngine{
		t: t, socket: filepath.Join(dir, "docker.sock"), file: filepath.Join(dir, "etc/docker/daemon.json"),
		root:    filepath.Join(dir, "data"),
		plugins: map[string]*types.Plugin{}, elsewhere: map[string]map[string]*types.Plugin{},
		images: map[string]int{"overlay2": 3}, broken: map[string]bool{}, silent: map[string]bool{},
		damaged: map[string]bool{}, running: map[string]bool{},
	}
	if err := os.MkdirAll(filepath.Join(f.root, "plugins"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := f.start(); err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("unix", f.socket)
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: f}
	go server.Serve(listener)
	t.Cleanup(func() { server.Close() })
	return f
}

// start reads the configuration and starts, or doesn't.
func (f *fakeEngine) start() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.up = false
	f.starts++
	for id := range f.running {
		f.running[id] = false
	}
	config := struct {
		Experimental bool   `json:"experimental"`
		Driver       string `json:"storage-driver"`
		Root         string `json:"data-root"`
		Features     map[string]bool
	}{Driver: "overlay2"}
	b, err := os.ReadFile(f.file)
	if err == nil {
		err = json.Unmarshal(b, &config)
	} else if errors.Is(err, os.ErrNotExist) {
		err = nil
	}
	if err != nil {
		return err
	}
	if config.Root == "" {
		config.Root = filepath.Join(filepath.Dir(f.socket), "data")
	}
	if config.Root != f.root {
		f.elsewhere[f.root], f.root = f.plugins, config.Root
		if f.plugins = f.elsewhere[f.root]; f.plugins == nil {
			f.plugins = map[string]*types.Plugin{}
		}
	}
	if config.Features["containerd-snapshotter"] {
		if f.known == nil || !f.known() {
			return fmt.Errorf("configured driver %q not available", config.Driver)
		}
	} else if config.Driver != "overlay2" && config.Driver != "vfs" {
		p := f.plugins[config.Driver]
		switch {
		case !config.Experimental:
			return errors.New("graphdriver plugins are only supported with experimental mode")
		case p == nil:
			return fmt.Errorf("plugin %q not found", config.Driver)
		case !p.Enabled:
			return fmt.Errorf("plugin %s found but disabled", config.Driver)
		case f.broken[p.Config.Description], f.damaged[p.ID]:
			return errors.New("driver not supported")
		}
	}
	if err := os.MkdirAll(filepath.Join(f.root, "image", config.Driver), 0o700); err != nil {
		return err
	}
	f.driver, f.up = config.Driver, true
	return nil
}

// kills are the ways in which a plugin keeps its engine from starting.
var kills = map[string]func(f *fakeEngine){
	"disabled": func(f *fakeEngine) { f.plugins[DefaultName].Enabled = false },
	"removed":  func(f *fakeEngine) { delete(f.plugins, DefaultName) },
	"damaged":  func(f *fakeEngine) { f.damaged[f.plugins[DefaultName].ID] = true },
}

// die has the plugin keep the engine from starting.
func (f *fakeEngine) die(how string) {
	f.t.Helper()
	kills[how](f)
	if f.start() == nil {
		f.t.Fatalf("%s: the engine starts", how)
	}
}

// change changes what the engine is like, while it may be answering.
func (f *fakeEngine) change(how func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	how()
}

// mends ends the failure of a request once a step has failed by it: going back takes the same request.
func (f *fakeEngine) mends(e Event) {
	if e.Outcome == Failed {
		f.change(func() { f.fails = "" })
	}
}

// ServeHTTP answers the API, and /restart.
func (f *fakeEngine) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	path := r.URL.Path
	if strings.HasPrefix(path, "/v1.") {
		path = path[strings.Index(path[1:], "/")+1:]
	}
	if path == "/restart" { // not of the engine's: what stands for its service
		if err := f.start(); err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
		}
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.up {
		panic(http.ErrAbortHandler)
	}
	request := r.Method + " " + path
	if r.Method != http.MethodGet {
		f.asked = append(f.asked, request)
	}
	if f.fails != "" && strings.HasPrefix(request, f.fails) {
		refuse(w, http.StatusInternalServerError, "no space left on device")
		return
	}
	f.answer(w, r, path)
}

func refuse(w http.ResponseWriter, code int, message string) {
	w.WriteHeader(code)
	json.NewEncoder(w).Encode(map[string]string{"message": message})
}

func (f *fakeEngine) answer(w http.ResponseWriter, r *http.Request, path string) {
	parts := strings.Split(strings.Trim(path, "/"), "/")
	switch parts[0] {
	case "_ping":
		w.Header().Set("API-Version", "1.41")
		io.WriteString(w, "OK")
	case "info":
		info := map[string]any{
			"ServerVersion": "20.10.24", "Driver": f.driver, "DockerRootDir": f.root,
			"Images": f.images[f.driver], "ContainersRunning": len(f.running),
		}
		if f.remapped {
			info["SecurityOptions"] = []string{"name=userns"}
		}
		json.NewEncoder(w).Encode(info)
	case "plugins":
		f.answerPlugin(w, r, parts[1:])
	case "images":
		if r.Method == http.MethodPost {
			io.Copy(io.Discard, r.Body)
			io.WriteString(w, "{}")
			return
		}
		io.WriteString(w, "[]")
	case "containers":
		f.answerContainer(w, r, parts[1:])
	default:
		refuse(w, http.StatusNotFound, "page not found")
	}
}

func (f *fakeEngine) answerContainer(w http.ResponseWriter, r *http.Request, parts []string) {
	switch parts[len(parts)-1] {
	case "json":
		list := []map[string]any{}
		for id, running := range f.running {
			if running && r.URL.Query().Get("all") == "" {
				list = append(list, map[string]any{"Id": id})
			}
		}
		json.NewEncoder(w).Encode(list)
	case "create":
		var made struct{ Cmd []string }
		json.NewDecoder(r.Body).Decode(&made)
		f.word = strings.Join(made.Cmd, " ")
		w.WriteHeader(http.StatusCreated)
		io.WriteString(w, `{"Id":"c1"}`)
	case "start":
		if p := f.plugins[f.driver]; p != nil && (!p.Enabled || f.silent[p.Config.Description]) {
			refuse(w, http.StatusInternalServerError, "failed to mount")
			return
		}
		if _, known := f.running[parts[0]]; known {
			f.running[parts[0]] = true
		}
		w.WriteHeader(http.StatusNoContent)
	case "wait":
		io.WriteString(w, `{"StatusCode":0}`)
	case "logs":
		// All of it is lost, as by an engine that is too busy to read what a short-lived process says.
	case "archive":
		f.answerArchive(w, r)
	default:
		w.WriteHeader(http.StatusNoContent)
	}
}

// answerArchive returns the file that a container of the test image writes.
func (f *fakeEngine) answerArchive(w http.ResponseWriter, r *http.Request) {
	if r.URL.Query().Get("path") != wordFile {
		refuse(w, http.StatusNotFound, "no such file")
		return
	}
	w.Header().Set("X-Docker-Container-Path-Stat", base64.StdEncoding.EncodeToString([]byte(`{"name":"word"}`)))
	w.Write(testutil.Tar(f.t, tar.Header{Name: "word", Typeflag: tar.TypeReg, Mode: 0o600, Linkname: f.word}))
}

// plain is a plugin's name without the tag that goes without saying.
func plain(name string) string { return strings.TrimSuffix(name, ":latest") }

func (f *fakeEngine) answerPlugin(w http.ResponseWriter, r *http.Request, parts []string) {
	if len(parts) == 0 {
		all := []*types.Plugin{}
		for _, p := range f.plugins {
			all = append(all, p)
		}
		json.NewEncoder(w).Encode(all)
		return
	}
	switch parts[0] {
	case "create":
		config, err := configOf(r.Body)
		if err != nil {
			refuse(w, http.StatusBadRequest, err.Error())
			return
		}
		f.add(plain(r.URL.Query().Get("name")), config)
		w.WriteHeader(http.StatusNoContent)
		return
	case "privileges":
		io.WriteString(w, "[]")
		return
	}
	name := plain(strings.Join(parts[:max(1, len(parts)-1)], "/"))
	p := f.plugins[name]
	if p == nil {
		refuse(w, http.StatusNotFound, `plugin "`+name+`" not found`)
		return
	}
	if r.Method == http.MethodDelete {
		delete(f.plugins, name)
		os.RemoveAll(filepath.Join(f.root, "plugins", p.ID))
		f.images[name] = 0
		return
	}
	switch parts[len(parts)-1] {
	case "json":
		json.NewEncoder(w).Encode(p)
	case "enable":
		if f.damaged[p.ID] {
			refuse(w, http.StatusInternalServerError, "no such file or directory")
			return
		}
		p.Enabled = true
	case "disable":
		p.Enabled = false
	case "set":
		f.set(w, r, p)
	case "upgrade":
		if p.Enabled {
			refuse(w, http.StatusConflict, "plugin is enabled")
			return
		}
		config, err := pulled(r.URL.Query().Get("remote"))
		if err != nil {
			refuse(w, http.StatusInternalServerError, err.Error())
			return
		}
		p.Config = *config
		delete(f.damaged, p.ID)
		io.WriteString(w, "{}")
	}
}

func (f *fakeEngine) set(w http.ResponseWriter, r *http.Request, p *types.Plugin) {
	if p.Enabled {
		refuse(w, http.StatusConflict, "cannot set on an active plugin, disable plugin before setting")
		return
	}
	var settings []string
	json.NewDecoder(r.Body).Decode(&settings)
	for _, s := range settings {
		key, value, _ := strings.Cut(s, "=")
		at := slices.IndexFunc(p.Settings.Env, func(e string) bool { return strings.HasPrefix(e, key+"=") })
		mount := slices.IndexFunc(p.Settings.Mounts, func(m types.PluginMount) bool { return m.Name == key })
		switch {
		case at >= 0:
			p.Settings.Env[at] = s
		case mount >= 0: // what counts is the configuration; without an upgrade both are one
			p.Settings.Mounts[mount].Source = &value
			p.Config.Mounts[mount].Source = &value
		default:
			refuse(w, http.StatusInternalServerError, fmt.Sprintf("setting %q not found in the plugin configuration",
				key))
			return
		}
	}
}

// add adds a plugin with the settings its configuration has.
func (f *fakeEngine) add(name string, config *types.PluginConfig) {
	p := &types.Plugin{ID: "id-" + strings.ReplaceAll(name, "/", "-"), Name: name + ":latest", Config: *config}
	p.Settings.Mounts = slices.Clone(config.Mounts)
	for _, e := range config.Env {
		p.Settings.Env = append(p.Settings.Env, e.Name+"="+*e.Value)
	}
	f.plugins[name] = p
	if err := os.MkdirAll(filepath.Join(f.root, "plugins", p.ID, "rootfs"), 0o700); err != nil {
		f.t.Error(err)
	}
}

// configOf reads config.json of the archive that a plugin is created from.
func configOf(archive io.Reader) (*types.PluginConfig, error) {
	var config *types.PluginConfig
	for r := tar.NewReader(archive); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			if config == nil {
				return nil, errors.New("no config.json")
			}
			return config, nil
		}
		if err != nil {
			return nil, err
		}
		if h.Name == "config.json" {
			if err := json.NewDecoder(r).Decode(&config); err != nil {
				return nil, err
			}
		}
	}
}

// pulled reads a plugin's configuration from a registry.
func pulled(from string) (*types.PluginConfig, error) {
	ref, err := name.ParseReference(from)
	if err != nil {
		return nil, err
	}
	image, err := remote.Image(ref)
	if err != nil {
		return nil, err
	}
	raw, err := image.RawConfigFile()
	if err != nil {
		return nil, err
	}
	config := &types.PluginConfig{}
	return config, json.Unmarshal(raw, config)
}
