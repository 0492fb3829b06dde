package main

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/yggate/yggate/gateway/admin"
)

// TestGatewayHangs: who waits for a gateway that takes the question and answers
// nothing is not kept, and is told whose answer is missing.
func TestGatewayHangs(t *testing.T) {
	path := admin.SocketPath(t.TempDir())
	silent, err := admin.Listen(path) // nobody accepts
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { silent.Close() })
	client := admin.NewClient(path)
	for name, c := range map[string]struct {
		ask  func(context.Context) error
		want string
	}{
		"status": {func(ctx context.Context) error {
			_, err := awaitStatus(ctx, client, time.Millisecond, nil)
			return err
		}, "the gateway on " + path + " has not answered in time"},
		"accept": {func(ctx context.Context) error {
			_, err := within(ctx, time.Millisecond, func(ctx context.Context) (admin.Preview, error) {
				return client.Preview(ctx, admin.AcceptRequest{})
			})
			return err
		}, "the other grid has not answered within 1ms"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
			defer cancel()
			if err := c.ask(ctx); err == nil || ctx.Err() != nil || !strings.HasPrefix(err.Error(), c.want) {
				t.Errorf("got %v, want %s", err, c.want)
			}
		})
	}
}
