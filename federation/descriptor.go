package federation

// Descriptor is what a grid signs about itself.
type Descriptor struct{}
