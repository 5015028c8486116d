/*
 * Checks the policy on this board: computes the outputs and actions of test vectors, and prints how many differ and how
 * long it took. In a sketch of your own, fill an observation from your sensors and call policy_act, see src/${c_name}.h.
 */
#include <${library}.h>

extern "C" int count_differences(void);

void setup()
{
    Serial.begin(115200);
    while (!Serial) {
    }
}

void loop()
{
    const unsigned long start = micros();
    const int wrong = count_differences();
    const unsigned long microseconds = micros() - start;
    Serial.print(wrong);
    Serial.print(F(" of the test vectors differ, microseconds: "));
    Serial.println(microseconds);
    delay(1000);
}
