package installer

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/docker/docker/api/types"
	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/filters"
	"github.com/docker/docker/api/types/image"
	"github.com/docker/docker/api/types/registry"
	"github.com/docker/docker/client"
	"github.com/docker/docker/pkg/jsonmessage"
	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"

	"cvmfs-graphdriver/rootfs"
)

const (
	callWait = 2 * time.Minute // until the engine has done what is asked of it, pulls and loads aside
	// seconds until a plugin's process has opened its socket; the engine's own limit for its client
	enableWait = 30
)

// Engine is a Docker engine of this host. All that is done with it is done here, through its API.
type Engine struct{ api *client.Client }

// Connect makes the client of an engine's socket, "unix:///path" or a path; "" is what DOCKER_HOST says, or the usual
// socket. Nothing is asked of the engine yet.
func Connect(host string) (*Engine, error) {
	options := []client.Opt{client.FromEnv, client.WithAPIVersionNegotiation()}
	if strings.HasPrefix(host, "/") {
		host = "unix://" + host
	}
	if host != "" {
		options = append(options, client.WithHost(host))
	}
	api, err := client.NewClientWithOpts(options...)
	if err != nil {
		return nil, fmt.Errorf("connect to the engine %s: %w", host, err)
	}
	return &Engine{api}, nil
}

// Close lets the connection go.
func (e *Engine) Close() error { return e.api.Close() }

// Client is the API's client, for those who ask what isn't asked here.
func (e *Engine) Client() *client.Client { return e.api }

// engineState is what an engine says of itself.
type engineState struct {
	version    string
	driver     string // of storage
	root       string // the data folder, that of a remapped user included
	remapped   bool   // containers run in a user namespace
	images     int
	containers int // that run
}

// downWait bounds how long an engine may take to say that it is there. Where systemd listens for it, a call waits for
// its start.
const downWait = 15 * time.Second

// down reports whether no engine answers. One that may not be asked, or that answers with an error, is an error: it may
// run.
func (e *Engine) down(ctx context.Context) (bool, error) {
	asking, cancel := context.WithTimeout(ctx, downWait)
	defer cancel()
	err := e.Ping(asking)
	switch {
	case errors.Is(err, fs.ErrPermission):
		return false, denied(err)
	case ctx.Err() != nil:
		return false, ctx.Err()
	}
	if err == nil || client.IsErrConnectionFailed(err) || asking.Err() != nil {
		return err != nil, nil
	}
	return false, fmt.Errorf("ask the engine whether it is there: %w", err)
}

// denied adds the remedy to the error of a socket that may not be used.
func denied(err error) error {
	if errors.Is(err, fs.ErrPermission) {
		return fmt.Errorf("%w (run this program as root)", err)
	}
	return err
}

// running returns the ids of the containers that run, the oldest first.
func (e *Engine) running(ctx context.Context) ([]string, error) {
	ctx, cancel := context.WithTimeout(ctx, callWait)
	defer cancel()
	found, err := e.api.ContainerList(ctx, container.ListOptions{})
	if err != nil {
		return nil, fmt.Errorf("ask the engine for its containers: %w", err)
	}
	slices.SortFunc(found, func(a, b container.Summary) int { return cmp.Compare(a.Created, b.Created) })
	var ids []string
	for _, c := range found {
		ids = append(ids, c.ID)
	}
	return ids, nil
}

// all returns the names of the containers of the present storage driver, those that don't run included.
func (e *Engine) all(ctx context.Context) ([]string, error) {
	ctx, cancel := context.WithTimeout(ctx, callWait)
	defer cancel()
	found, err := e.api.ContainerList(ctx, container.ListOptions{All: true})
	if err != nil {
		return nil, fmt.Errorf("ask the engine for its containers: %w", err)
	}
	var names []string
	for _, c := range found {
		if len(c.Names) > 0 {
			names = append(names, strings.TrimPrefix(c.Names[0], "/"))
		}
	}
	return names, nil
}

// startContainer starts a container that doesn't run.
func (e *Engine) startContainer(ctx context.Context, id string) error {
	ctx, cancel := context.WithTimeout(ctx, callWait)
	defer cancel()
	if err := e.api.ContainerStart(ctx, id, container.StartOptions{}); err != nil {
		return fmt.Errorf("start the container %s again: %w", id, err)
	}
	return nil
}

// ours returns the names of the plugins that are made of this project's bundles.
func (e *Engine) ours(ctx context.Context) ([]string, error) {
	ctx, cancel := context.WithTimeout(ctx, callWait)
	defer cancel()
	found, err := e.api.PluginList(ctx, filters.Args{})
	if err != nil {
		return nil, fmt.Errorf("ask the engine for its plugins: %w", err)
	}
	var names []string
	for _, p := range found {
		if len(p.Config.Entrypoint) > 0 && p.Config.Entrypoint[0] == rootfs.Program {
			names = append(names, strings.TrimSuffix(p.Name, ":latest"))
		}
	}
	return names, nil
}

// Ping asks whether the engine is there.
func (e *Engine) Ping(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, callWait)
	defer cancel()
	_, err := e.api.Ping(ctx)
	return err
}

func (e *Engine) state(ctx context.Context) (*engineState, error) {
	ctx, cancel := context.WithTimeout(ctx, callWait)
	defer cancel()
	info, err := e.api.Info(ctx)
	if err != nil {
		return nil, fmt.Errorf("ask the engine what it runs on: %w", denied(err))
	}
	s := &engineState{
		version: info.ServerVersion, driver: info.Driver, root: info.DockerRootDir,
		images: info.Images, containers: info.ContainersRunning,
	}
	for _, option := range info.SecurityOptions {
		s.remapped = s.remapped || strings.Contains(option, "name=userns")
	}
	return s, nil
}

// plugin returns the plugin of a name, nil if there is none.
func (e *Engine) plugin(ctx context.Context, name string) (*types.Plugin, error) {
	ctx, cancel := context.WithTimeout(ctx, callWait)
	defer cancel()
	p, _, err := e.api.PluginInspectWithRaw(ctx, name)
	if errdefs.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("look at the plugin %s: %w", name, err)
	}
	return p, nil
}

// createPlugin makes a plugin of an archive of config.json and rootfs/. It is not enabled.
func (e *Engine) createPlugin(ctx context.Context, name string, archive io.Reader) error {
	if err := e.api.PluginCreate(ctx, archive, types.PluginCreateOptions{RepoName: name}); err != nil {
		return fmt.Errorf("create the plugin %s: %w", name, err)
	}
	return nil
}

// installPlugin brings a plugin from a registry; rights tells an error if it wants more than it may. It is not enabled.
func (e *Engine) installPlugin(ctx context.Context, name, from string, rights rightsFunc) error {
	return e.fetchPlugin("install the plugin "+name+" from "+from, from, rights,
		func(o types.PluginInstallOptions) (io.ReadCloser, error) {
			return e.api.PluginInstall(ctx, name, o)
		})
}

// upgradePlugin replaces a plugin that is not enabled by one from a registry; its id, its settings and its layers stay.
//
// The engine shows the former settings afterwards, and those of folders and devices have no effect: it uses what the
// new plugin's configuration says (seen with 20.10 and 26.1). They are made again.
func (e *Engine) upgradePlugin(ctx context.Context, name, from string, rights rightsFunc) error {
	before, err := e.plugin(ctx, name)
	if err != nil {
		return err
	}
	err = e.fetchPlugin("upgrade the plugin "+name+" from "+from, from, rights,
		func(o types.PluginInstallOptions) (io.ReadCloser, error) {
			return e.api.PluginUpgrade(ctx, name, o)
		})
	if err != nil || before == nil {
		return err
	}
	after, err := e.plugin(ctx, name)
	if err != nil || after == nil {
		return err
	}
	if lost := without(after, before); len(lost) > 0 {
		return e.setPlugin(ctx, name, lost)
	}
	return nil
}

// without returns the settings of folders and devices of one plugin that another doesn't heed, as far as it has them.
func without(p, other *types.Plugin) (lost []string) {
	add := func(name string, has *string, settable []string) {
		want, ok := setting(other, name)
		if ok && has != nil && *has != want && len(settable) > 0 {
			lost = append(lost, name+"="+want)
		}
	}
	for _, m := range p.Config.Mounts {
		add(m.Name, m.Source, m.Settable)
	}
	for _, d := range p.Config.Linux.Devices {
		add(d.Name, d.Path, d.Settable)
	}
	return lost
}

// rightsFunc judges what a plugin wants of the host.
type rightsFunc func(types.PluginPrivileges) error

func (e *Engine) fetchPlugin(what, from string, rights rightsFunc,
	fetch func(types.PluginInstallOptions) (io.ReadCloser, error),
) error {
	auth, err := credentials(from)
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	said, err := fetch(types.PluginInstallOptions{
		Disabled: true, RemoteRef: from, RegistryAuth: auth,
		AcceptPermissionsFunc: func(_ context.Context, p types.PluginPrivileges) (bool, error) {
			err := rights(p)
			return err == nil, err
		},
	})
	if err == nil {
		err = errors.Join(heed(said, nil), said.Close())
	}
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	return nil
}

// credentials are those the Docker client's configuration has for the registry of a reference, as the API wants them.
func credentials(ref string) (string, error) {
	parsed, err := name.ParseReference(ref)
	if err != nil {
		return "", err
	}
	found, err := authn.DefaultKeychain.Resolve(parsed.Context())
	if err != nil {
		return "", fmt.Errorf("find the credentials for %s: %w", parsed.Context().RegistryStr(), err)
	}
	auth, err := found.Authorization()
	if err != nil {
		return "", fmt.Errorf("find the credentials for %s: %w", parsed.Context().RegistryStr(), err)
	}
	return registry.EncodeAuthConfig(registry.AuthConfig{
		Username: auth.Username, Password: auth.Password, Auth: auth.Auth,
		IdentityToken: auth.IdentityToken, RegistryToken: auth.RegistryToken,
	})
}

func (e *Engine) setPlugin(ctx context.Context, name string, settings []string) error {
	ctx, cancel := context.WithTimeout(ctx, callWait)
	defer cancel()
	if err := e.api.PluginSet(ctx, name, settings); err != nil {
		return fmt.Errorf("set %s of the plugin %s: %w", strings.Join(settings, " "), name, err)
	}
	return nil
}

func (e *Engine) enablePlugin(ctx context.Context, name string) error {
	ctx, cancel := context.WithTimeout(ctx, callWait)
	defer cancel()
	if err := e.api.PluginEnable(ctx, name, types.PluginEnableOptions{Timeout: enableWait}); err != nil {
		return fmt.Errorf("enable the plugin %s: %w", name, err)
	}
	return nil
}

// disablePlugin ends the plugin's process, even if it is the storage driver.
func (e *Engine) disablePlugin(ctx context.Context, name string) error {
	ctx, cancel := context.WithTimeout(ctx, callWait)
	defer cancel()
	if err := e.api.PluginDisable(ctx, name, types.PluginDisableOptions{Force: true}); err != nil {
		return fmt.Errorf("disable the plugin %s: %w", name, err)
	}
	return nil
}

// removePlugin removes a plugin and with it every layer it holds.
func (e *Engine) removePlugin(ctx context.Context, name string) error {
	ctx, cancel := context.WithTimeout(ctx, callWait)
	defer cancel()
	if err := e.api.PluginRemove(ctx, name, types.PluginRemoveOptions{Force: true}); err != nil &&
		!errdefs.IsNotFound(err) {
		return fmt.Errorf("remove the plugin %s: %w", name, err)
	}
	return nil
}

// have brings an image unless the engine has it; pulled reports whether it had to.
func (e *Engine) have(ctx context.Context, ref string) (pulled bool, err error) {
	_, err = e.api.ImageInspect(ctx, ref)
	if err == nil || !errdefs.IsNotFound(err) {
		return false, err
	}
	return true, e.Pull(ctx, ref, nil)
}

// Pull brings an image, which is asked for in the registry also where the engine has one of its name. tell, if it isn't
// nil, is called with the engine's words for each layer: the beginning of its digest, and what becomes of it.
func (e *Engine) Pull(ctx context.Context, ref string, tell func(layer, becomes string)) error {
	auth, err := credentials(ref)
	if err != nil {
		return fmt.Errorf("pull %s: %w", ref, err)
	}
	said, err := e.api.ImagePull(ctx, ref, image.PullOptions{RegistryAuth: auth})
	if err == nil {
		err = errors.Join(heed(said, tell), said.Close())
	}
	if err != nil {
		return fmt.Errorf("pull %s: %w", ref, err)
	}
	return nil
}

// heed reads the engine's progress messages to their end; one may be an error.
func heed(r io.Reader, tell func(layer, becomes string)) error {
	for d := json.NewDecoder(r); ; {
		var said jsonmessage.JSONMessage
		switch err := d.Decode(&said); {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		case said.Error != nil:
			return said.Error
		case tell != nil && said.ID != "":
			tell(said.ID, said.Status)
		}
	}
}

// loadImage loads an archive as docker save makes it.
func (e *Engine) loadImage(ctx context.Context, archive io.Reader) error {
	answer, err := e.api.ImageLoad(ctx, archive, client.ImageLoadWithQuiet(true))
	if err == nil {
		err = errors.Join(heed(answer.Body, nil), answer.Body.Close())
	}
	if err != nil {
		return fmt.Errorf("load an image: %w", err)
	}
	return nil
}

func (e *Engine) removeImage(ctx context.Context, ref string) error {
	ctx, cancel := context.WithTimeout(ctx, callWait)
	defer cancel()
	if _, err := e.api.ImageRemove(ctx, ref, image.RemoveOptions{Force: true, PruneChildren: true}); err != nil &&
		!errdefs.IsNotFound(err) {
		return fmt.Errorf("remove the image %s: %w", ref, err)
	}
	return nil
}

// RemoveContainer ends and removes a container, by its id or name, and its volumes. One that has gone is no error.
func (e *Engine) RemoveContainer(ctx context.Context, id string) error {
	ctx, cancel := context.WithTimeout(ctx, callWait)
	defer cancel()
	if err := e.api.ContainerRemove(ctx, id, container.RemoveOptions{Force: true, RemoveVolumes: true}); err != nil &&
		!errdefs.IsNotFound(err) {
		return fmt.Errorf("remove the container %s: %w", id, err)
	}
	return nil
}
