package peertest

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"

	"maunium.net/go/mautrix"
	"maunium.net/go/mautrix/crypto/canonicaljson"
	"maunium.net/go/mautrix/crypto/goolm/account"
	"maunium.net/go/mautrix/crypto/signatures"
	"maunium.net/go/mautrix/event"
	"maunium.net/go/mautrix/id"
)

// DeviceKeys are what a device publishes so that others may encrypt to it.
type DeviceKeys struct {
	Device  *mautrix.DeviceKeys
	OneTime map[id.KeyID]mautrix.OneTimeKey
}

// PublishKeys makes new keys for the client's device, n one-time keys among them,
// and uploads them (client-server API §10.11.4). They are validly signed, but
// nothing can be decrypted by them.
func (c *MatrixClient) PublishKeys(ctx context.Context, n int) (DeviceKeys, error) {
	keys, err := c.makeKeys(n)
	if err != nil {
		return keys, fmt.Errorf("make device keys of %s: %w", c.UserID, err)
	}
	if _, err := c.UploadKeys(ctx, &mautrix.ReqUploadKeys{DeviceKeys: keys.Device, OneTimeKeys: keys.OneTime}); err != nil {
		return keys, fmt.Errorf("upload device keys of %s: %w", c.UserID, err)
	}
	return keys, nil
}

func (c *MatrixClient) makeKeys(n int) (DeviceKeys, error) {
	a, err := account.NewAccount()
	if err != nil {
		return DeviceKeys{}, err
	}
	signing, identity, err := a.IdentityKeys()
	if err != nil {
		return DeviceKeys{}, err
	}
	keys := DeviceKeys{OneTime: map[id.KeyID]mautrix.OneTimeKey{}, Device: &mautrix.DeviceKeys{
		UserID: c.UserID, DeviceID: c.DeviceID,
		Algorithms: []id.Algorithm{id.AlgorithmMegolmV1, id.AlgorithmOlmV1},
		Keys: mautrix.KeyMap{
			id.NewDeviceKeyID(id.KeyAlgorithmEd25519, c.DeviceID):    signing.String(),
			id.NewDeviceKeyID(id.KeyAlgorithmCurve25519, c.DeviceID): identity.String(),
		},
	}}
	if keys.Device.Signatures, err = c.sign(a, keys.Device); err != nil {
		return keys, err
	}
	if err := a.GenOneTimeKeys(uint(n)); err != nil {
		return keys, err
	}
	oneTime, err := a.OneTimeKeys()
	if err != nil {
		return keys, err
	}
	for name, key := range oneTime {
		k := mautrix.OneTimeKey{Key: key, IsSigned: true}
		if k.Signatures, err = c.sign(a, &k); err != nil {
			return keys, err
		}
		keys.OneTime[id.NewKeyID(id.KeyAlgorithmSignedCurve25519, name)] = k
	}
	return keys, nil
}

// sign signs an object that has no signature yet (specification, appendix 3.3.1).
func (c *MatrixClient) sign(a *account.Account, v any) (signatures.Signatures, error) {
	text, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	var object map[string]json.RawMessage
	if err := json.Unmarshal(text, &object); err != nil {
		return nil, err
	}
	delete(object, "signatures")
	if text, err = json.Marshal(object); err != nil {
		return nil, err
	}
	if text, err = canonicaljson.CanonicalJSON(text); err != nil {
		return nil, err
	}
	sig, err := a.Sign(text)
	return signatures.NewSingleSignature(c.UserID, id.KeyAlgorithmEd25519, c.DeviceID.String(), string(sig)), err
}

// devices has from publish new keys, and to hear of it, look them up and claim
// one-time keys until none is left.
func (c *matrixConversation) devices(from, to *MatrixClient) {
	const oneTime = 2
	var keys DeviceKeys
	c.step("device list of "+from.Name, func(ctx context.Context) error {
		mark := to.Mark()
		var err error
		if keys, err = from.PublishKeys(ctx, oneTime); err != nil {
			return err
		}
		_, err = to.AwaitAfter(ctx, mark, "change in the devices of "+from.UserID.String(), func(e *MatrixEvent) bool {
			return e.Type == DeviceListChanged && e.Sender == from.UserID
		})
		if err != nil {
			return err
		}
		// The change may be told before the keys are fetched.
		return poll(ctx, nil, func(ctx context.Context) error {
			r, err := to.QueryKeys(ctx, &mautrix.ReqQueryKeys{DeviceKeys: mautrix.DeviceKeysRequest{from.UserID: {from.DeviceID}}})
			if err != nil {
				return err
			}
			have, want := r.DeviceKeys[from.UserID][from.DeviceID], keys.Device
			if have.Keys.GetEd25519(from.DeviceID) != want.Keys.GetEd25519(from.DeviceID) {
				return fmt.Errorf("device %s of %s has keys %v, want %v; failures %v", from.DeviceID, from.UserID, have.Keys, want.Keys, r.Failures)
			}
			return nil
		})
	})
	c.step("one-time keys of "+from.Name, func(ctx context.Context) error {
		for range oneTime {
			key, err := claim(ctx, from, to)
			if err != nil {
				return err
			}
			ok, err := signatures.VerifySignatureJSON(key.RawData, from.UserID, from.DeviceID.String(), keys.Device.Keys.GetEd25519(from.DeviceID))
			if err != nil || !ok {
				return fmt.Errorf("the signature of one-time key %s is not valid: %w", key.RawData, err)
			}
		}
		if key, err := claim(ctx, from, to); !errors.Is(err, errNoKey) {
			return fmt.Errorf("after all one-time keys were claimed: %s, %w", key.RawData, err)
		}
		c.say(to.Name, "has the devices of %s and claims %d one-time keys, all there were", from.UserID, oneTime)
		return nil
	})
}

var errNoKey = errors.New("no one-time key came")

// claim has to claim a one-time key of from's device.
func claim(ctx context.Context, from, to *MatrixClient) (mautrix.OneTimeKey, error) {
	r, err := to.ClaimKeys(ctx, &mautrix.ReqClaimKeys{
		Timeout:     10_000,
		OneTimeKeys: mautrix.OneTimeKeysRequest{from.UserID: {from.DeviceID: id.KeyAlgorithmSignedCurve25519}},
	})
	if err != nil {
		return mautrix.OneTimeKey{}, err
	}
	if len(r.Failures) > 0 {
		return mautrix.OneTimeKey{}, fmt.Errorf("claim one-time key: failures %v", r.Failures)
	}
	for _, key := range r.OneTimeKeys[from.UserID][from.DeviceID] {
		return key, nil
	}
	return mautrix.OneTimeKey{}, errNoKey
}

func (c *matrixConversation) toDevice(from, to *MatrixClient) {
	c.step("to-device message from "+from.Name, func(ctx context.Context) error {
		kind, secret := event.Type{Type: "test.yggate", Class: event.ToDeviceEventType}, rand.Text()
		_, err := from.SendToDevice(ctx, kind, &mautrix.ReqSendToDevice{Messages: map[id.UserID]map[id.DeviceID]*event.Content{
			to.UserID: {to.DeviceID: {Raw: map[string]any{"secret": secret}}},
		}})
		if err != nil {
			return err
		}
		_, err = to.Await(ctx, "to-device message "+secret, func(e *MatrixEvent) bool {
			return e.Type.Type == kind.Type && e.Sender == from.UserID && e.Content.Raw["secret"] == secret
		})
		if err != nil {
			return err
		}
		c.say(from.Name, "reaches device %s of %s", to.DeviceID, to.UserID)
		return nil
	})
}
