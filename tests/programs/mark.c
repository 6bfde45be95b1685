/* SPDX-License-Identifier: Apache-2.0 */
/* An image that writes one byte to the pipe that `attempts` gave it. Its first instructions are all it has. */
#include <unistd.h>

int main(void)
{
	return write(9, "x", 1) != 1;
}
