//go:build race

package store

// manyItems is how many items wait in TestManyWaitingItems. The race detector makes
// SQLite, which is Go here, slow.
const manyItems = 20_000
