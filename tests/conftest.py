"""What all tests share."""

import torch

# The tensors of the tests are tiny: more threads only wait for each other (20 times slower beside
# other work).
torch.set_num_threads(1)
