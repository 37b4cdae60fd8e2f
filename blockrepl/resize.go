package blockrepl

import (
	"context"
	"fmt"
	"io"

	"github.com/blockrepl/blockrepl/blockrepl/replica"
	"github.com/blockrepl/blockrepl/journal/record"
)

// Comes from: the operator's resize. Does: refuses what this server's image cannot
// take. Goes to: the state machine, which numbers the new size.

func handleResize(ctx context.Context, v *Volume, body io.Reader) (any, error) {
	var q ResizeRequest
	if err := readBody(body, &q); err != nil {
		return nil, err
	}
	if q.SizeBytes <= 0 || q.SizeBytes%512 != 0 || q.SizeBytes > record.MaxSize {
		return nil, fmt.Errorf("%w: size %d must be a multiple of 512 bytes", errBadRequest, q.SizeBytes)
	}
	if err := v.holds(q.SizeBytes, q.Force); err != nil {
		return nil, err
	}
	_, err := v.command(ctx, func(id uint64) replica.Event { return replica.Resize{ID: id, Size: q.SizeBytes} })
	if err != nil {
		return nil, err
	}
	return ResizeReport{Volume: v.name, SizeBytes: q.SizeBytes}, nil
}

// holds refuses a size before it is numbered. Once it is committed every server must
// take it, at each start again, and there is no way back: a size that no image can
// have, a slip of the keyboard, would fail them all for good.
func (v *Volume) holds(size int64, force bool) error {
	if size <= v.size.Load() {
		return nil // smaller or late: the state machine says it
	}
	missing, err := v.img.Holds(size)
	if err != nil {
		return fmt.Errorf("%w: %w", replica.ErrRefused, err)
	}
	if missing > 0 && !force {
		return fmt.Errorf("%w: the file system of image %s on %v lacks %d MiB to take all of it, and no volume gets smaller again; add --force if it will have them",
			replica.ErrRefused, v.img.Path(), v.s.opt.ID, missing>>20+1)
	}
	return nil
}
