/*
 * Checks the policy on this board: computes the outputs and actions of test vectors, and prints how many differ and how
 * long it took. In a sketch of your own, fill an observation from your sensors and call policy_act, see src/${c_name}.h.
//: if model.history > 1
 * The policy remembers its last ${model.history} observations: call policy_reset at the start of each episode, as check.c does.
//: endif
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
