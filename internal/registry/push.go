package registry

import (
	"context"
	"fmt"
	"net/http"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
)

// CheckPush finds out whether a registry would take an image now: it begins an upload, for not every registry says so
// when it is asked for access, and gives it up.
func (o Options) CheckPush(ctx context.Context, ref name.Reference) error {
	return Explain(ref, o.checkPush(ctx, ref))
}

func (o Options) checkPush(ctx context.Context, ref name.Reference) error {
	repository := ref.Context()
	auth, err := authn.Resolve(ctx, o.Credentials(), repository)
	if err != nil {
		return fmt.Errorf("credentials: %w", err)
	}
	base := transport.NewRetry(transport.NewUserAgent(o.Transport(), o.UserAgent),
		transport.WithRetryStatusCodes(http.StatusRequestTimeout,
			http.StatusInternalServerError, http.StatusBadGateway, http.StatusServiceUnavailable,
			http.StatusGatewayTimeout))
	t, err := transport.NewWithContext(ctx, repository.Registry, auth, base,
		[]string{repository.Scope(transport.PushScope)})
	if err != nil {
		return err
	}
	client := &http.Client{Transport: t}
	address := repository.Scheme() + "://" + repository.RegistryStr() + "/v2/" + repository.RepositoryStr() +
		"/blobs/uploads/"
	answer, err := send(ctx, client, http.MethodPost, address)
	if err != nil {
		return err
	}
	err = transport.CheckError(answer, http.StatusAccepted, http.StatusCreated)
	drain(answer)
	if err != nil {
		return err
	}
	upload, err := answer.Location()
	if err != nil || upload.Host != answer.Request.URL.Host {
		return nil // the registry gives it up by itself, in time
	}
	if answer, err = send(ctx, client, http.MethodDelete, upload.String()); err == nil {
		drain(answer)
	}
	return nil
}

func send(ctx context.Context, client *http.Client, method, address string) (*http.Response, error) {
	r, err := http.NewRequestWithContext(ctx, method, address, nil)
	if err != nil {
		return nil, err
	}
	return client.Do(r)
}
